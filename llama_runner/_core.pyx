# cython: language_level=3, binding=True, boundscheck=False, wraparound=False
# cython: initializedcheck=False, cdivision=True, freethreading_compatible=False
# distutils: language = c++
"""The native core: the one module that links llama.cpp.

It consists of the pieces below. Each is one idea in its own file, takes names from earlier pieces
only, and says in its first line from which. The types that _core.pxd declares are known to all.
"""

cimport cython

include "_native/process/errors.pxi"
include "_native/process/signals.pxi"
include "_native/process/turnstile.pxi"
include "_native/process/logging.pxi"
include "_native/process/machine.pxi"
include "_native/gguf/scan.pxi"
include "_native/gguf/template_shape.pxi"
include "_native/model/model.pxi"
include "_native/text/token_ids.pxi"
include "_native/text/tokenized.pxi"
include "_native/text/vocab.pxi"
include "_native/text/chat.pxi"
include "_native/sampling/sampler.pxi"
include "_native/decode/state.pxi"
include "_native/memory/cells.pxi"
include "_native/memory/parking.pxi"
include "_native/memory/room.pxi"
include "_native/memory/sharing.pxi"
include "_native/decode/loop.pxi"
include "_native/decode/stop_strings.pxi"
include "_native/decode/turn.pxi"
include "_native/decode/engine.pxi"
include "_native/memory/context.pxi"
include "_native/memory/sequence.pxi"
include "_native/decode/request.pxi"
include "_native/process/exit.pxi"
