# llama_runner's own C++, in _shim/: one file for each header
