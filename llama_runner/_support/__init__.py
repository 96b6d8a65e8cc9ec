"""What every layer may use: files, values that users set, the machine."""
