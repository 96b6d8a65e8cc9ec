# cython: language_level=3, binding=True, boundscheck=False, wraparound=False
# cython: initializedcheck=False, cdivision=True, freethreading_compatible=False
# distutils: language = c++
"""The native core: the one module that links llama.cpp.

Only its pieces live here, in dependency order; each is one idea in its own file.
"""

cimport cython

include "_native/errors.pxi"
include "_native/signals.pxi"
include "_native/turnstile.pxi"
include "_native/logging.pxi"
include "_native/scan.pxi"
include "_native/template_shape.pxi"
include "_native/model.pxi"
include "_native/token_ids.pxi"
include "_native/tokenized.pxi"
include "_native/vocab.pxi"
include "_native/chat.pxi"
include "_native/sampler.pxi"
include "_native/context.pxi"
include "_native/cells.pxi"
include "_native/parking.pxi"
include "_native/sequence.pxi"
include "_native/text.pxi"
include "_native/loop.pxi"
include "_native/turn.pxi"
include "_native/engine.pxi"
include "_native/request.pxi"
include "_native/module.pxi"
