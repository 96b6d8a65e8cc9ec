# Uses: token_ids
#
# Sampling: from raw logits to a token, without the GIL and, once warm, without an allocation.
#
# The usual truncation samplers need only the few best tokens. fused_sample() finds them with one
# pass that keeps each block's maximum: the k-th largest of those is a lower bound of the k-th
# largest logit, so only blocks that reach it can hold one of the top k. No array of the whole
# vocabulary is built and nothing is sorted but the survivors.
#
# What follows on the survivors does the arithmetic of llama.cpp's chain penalties, top-k, top-p,
# min-p, temperature, dist (src/llama-sampler.cpp) in the same order and precision, with the same
# generator, so that a seed gives the same tokens on both paths. Recipes with no top-k, or one so
# large that few blocks drop out, need the whole distribution and go through that chain itself.
from libc.float cimport FLT_MAX
from libc.math cimport INFINITY, expf, isfinite, isnan, logf
from libcpp.algorithm cimport nth_element, sort
from libcpp.random cimport mt19937, uniform_real_distribution

from llama_runner._llama_cpp.llama cimport (
    llama_sampler_chain_add,
    llama_sampler_chain_default_params,
    llama_sampler_chain_init,
    llama_sampler_chain_params,
    llama_sampler_init_dist,
    llama_sampler_init_min_p,
    llama_sampler_init_temp,
    llama_sampler_init_top_k,
    llama_sampler_init_top_p,
    llama_token,
    llama_token_data_array,
)
from llama_runner._llama_cpp.shim.guard cimport apply_sampler
from llama_runner._llama_cpp.shim.state cimport Candidate, Patch, SamplerRecipe, SamplerState

cdef enum:
    BLOCK_SIZE = 64
    MAXIMUM_LANES = 16
    # Instead of a token:
    LOGITS_NOT_FINITE = -1
    NO_SORTING_MEMORY = -2


cdef cpp_bool logit_greater(const Candidate & a, const Candidate & b) noexcept nogil:
    return a.logit > b.logit or (a.logit == b.logit and a.id < b.id)


cdef cpp_bool float_greater(const float & a, const float & b) noexcept nogil:
    return a > b


cdef inline float max_of_block(const float * x) noexcept nogil:
    # The compiler turns `a if a > b else b` on independent lanes into a vector maximum, even though
    # it may not reorder float operations. With the operands in this order a NaN is never chosen.
    cdef float lane
    cdef float lanes[MAXIMUM_LANES]
    cdef int i, j
    for j in range(MAXIMUM_LANES):
        lanes[j] = -INFINITY
    for i in range(BLOCK_SIZE // MAXIMUM_LANES):
        for j in range(MAXIMUM_LANES):
            lane = x[i * MAXIMUM_LANES + j]
            lanes[j] = lane if lane > lanes[j] else lanes[j]
    for j in range(MAXIMUM_LANES // 2):
        lanes[j] = lanes[j] if lanes[j] > lanes[j + 8] else lanes[j + 8]
    for j in range(MAXIMUM_LANES // 4):
        lanes[j] = lanes[j] if lanes[j] > lanes[j + 4] else lanes[j + 4]
    for j in range(1, 4):
        lanes[0] = lanes[0] if lanes[0] > lanes[j] else lanes[j]
    return lanes[0]


cdef void find_block_maxima(const float * logits, int n, vector[float] & maxima) noexcept nogil:
    cdef int n_whole = n // BLOCK_SIZE
    cdef int b, i
    cdef float tail
    maxima.resize((n + BLOCK_SIZE - 1) // BLOCK_SIZE)
    for b in range(n_whole):
        maxima[b] = max_of_block(logits + b * BLOCK_SIZE)
    if n_whole * BLOCK_SIZE < n:
        tail = -INFINITY
        for i in range(n_whole * BLOCK_SIZE, n):
            tail = logits[i] if logits[i] > tail else tail
        maxima[n_whole] = tail


cdef void patch_logit(SamplerState & state, float * logits, llama_token id,
                      float value) noexcept nogil:
    cdef Patch patch
    patch.id = id
    patch.logit = logits[id]
    state.patches.push_back(patch)
    logits[id] = value


cdef void apply_penalties(SamplerState & state, float * logits, int n_vocab,
                          const llama_token * history, size_t n_history) noexcept nogil:
    # Only a few tokens are penalised, so change them in place and restore them after sampling.
    cdef size_t n_window = min(n_history, <size_t> state.recipe.penalty_last_n)
    cdef size_t i = 0
    cdef size_t first
    cdef llama_token id
    cdef float logit
    state.window.assign(history + n_history - n_window, history + n_history)
    sort(state.window.begin(), state.window.end())
    while i < n_window:
        first = i
        id = state.window[i]
        while i < n_window and state.window[i] == id:
            i += 1
        logit = logits[id]
        if logit <= 0:
            logit *= state.recipe.repeat_penalty
        else:
            logit /= state.recipe.repeat_penalty
        logit -= (<float> (i - first) * state.recipe.frequency_penalty
                  + state.recipe.presence_penalty)
        if isfinite(logits[id]):
            # Keep a finite logit finite: an infinite one counts as the sign of a broken model.
            logit = max(-FLT_MAX, min(FLT_MAX, logit))
        patch_logit(state, logits, id, logit)


cdef void restore_logits(SamplerState & state, float * logits) noexcept nogil:
    # Go backwards, so that a logit that was patched twice gets its original value back.
    cdef size_t i = state.patches.size()
    while i > 0:
        i -= 1
        logits[state.patches[i].id] = state.patches[i].logit
    state.patches.clear()


cdef llama_token best_token(SamplerState & state, const float * logits, int n) noexcept nogil:
    # If several logits are the largest, take the first, as llama.cpp's greedy sampler does.
    cdef size_t b
    cdef size_t best_block = 0
    cdef int i
    find_block_maxima(logits, n, state.block_max)
    for b in range(1, state.block_max.size()):
        if state.block_max[b] > state.block_max[best_block]:
            best_block = b
    cdef float best = state.block_max[best_block]
    if not isfinite(best):
        return LOGITS_NOT_FINITE
    for i in range(<int> best_block * BLOCK_SIZE, n):
        if logits[i] == best:
            return i
    return LOGITS_NOT_FINITE


cdef inline bint is_certain(float largest, float temperature) noexcept nogil:
    # Dividing by a very low temperature makes the largest logit and its distances to the others
    # infinite, and the distribution would be NaN. In the limit, sampling is greedy.
    return not isfinite(largest / temperature)


cdef void find_top_k(SamplerState & state, const float * logits, int n, int k) noexcept nogil:
    # Put the k largest logits into state.candidates, in descending order.
    cdef size_t b
    cdef int i, end
    cdef float threshold
    cdef Candidate candidate
    find_block_maxima(logits, n, state.block_max)
    state.candidates.clear()
    threshold = -INFINITY
    if <size_t> k < state.block_max.size():
        state.block_max_scratch = state.block_max
        nth_element(state.block_max_scratch.begin(), state.block_max_scratch.begin() + (k - 1),
                    state.block_max_scratch.end(), float_greater)
        threshold = state.block_max_scratch[k - 1]
    candidate.p = 0
    for b in range(state.block_max.size()):
        if state.block_max[b] < threshold:
            continue
        end = min(n, <int> (b + 1) * BLOCK_SIZE)
        for i in range(<int> b * BLOCK_SIZE, end):
            if logits[i] >= threshold:
                candidate.logit = logits[i]
                candidate.id = i
                state.candidates.push_back(candidate)
    sort(state.candidates.begin(), state.candidates.end(), logit_greater)
    if state.candidates.size() > <size_t> k:
        state.candidates.resize(k)


cdef void keep_top_p(SamplerState & state, float top_p) noexcept nogil:
    cdef Candidate * c = state.candidates.data()
    cdef size_t n = state.candidates.size()
    cdef float total = 0
    cdef float cumulative = 0
    cdef size_t i
    if top_p >= 1:
        return
    for i in range(n):
        c[i].p = expf(c[i].logit - c[0].logit)
        total += c[i].p
    for i in range(n):
        cumulative += c[i].p / total
        if cumulative >= top_p:
            state.candidates.resize(i + 1)
            return


cdef void keep_min_p(SamplerState & state, float min_p) noexcept nogil:
    cdef Candidate * c = state.candidates.data()
    cdef float threshold
    cdef size_t i
    if min_p <= 0:
        return
    threshold = c[0].logit + logf(min_p)
    for i in range(1, state.candidates.size()):
        if c[i].logit < threshold:
            state.candidates.resize(i)
            return


cdef llama_token draw_token(SamplerState & state, float temperature) noexcept nogil:
    cdef Candidate * c = state.candidates.data()
    cdef size_t n = state.candidates.size()
    cdef uniform_real_distribution[double] uniform = uniform_real_distribution[double](0.0, 1.0)
    cdef double total = 0
    cdef double running = 0
    cdef double target = uniform(state.rng)  # draw once per token, even if one candidate is left
    cdef size_t i
    for i in range(n):
        c[i].logit /= temperature
    for i in range(n):
        c[i].p = expf(c[i].logit - c[0].logit)
        total += c[i].p
    target *= total
    for i in range(n):
        running += c[i].p
        if running >= target:
            return c[i].id
    return c[n - 1].id


cdef llama_token fused_sample(SamplerState & state, const float * logits, int n) noexcept nogil:
    find_top_k(state, logits, n, min(state.recipe.top_k, n))
    if state.candidates.empty() or not isfinite(state.candidates[0].logit):
        return LOGITS_NOT_FINITE
    if is_certain(state.candidates[0].logit, state.recipe.temperature):
        return state.candidates[0].id
    keep_top_p(state, state.recipe.top_p)
    keep_min_p(state, state.recipe.min_p)
    return draw_token(state, state.recipe.temperature)


cdef llama_token chain_sample(SamplerState & state, const float * logits, int n) noexcept nogil:
    cdef llama_token_data_array array
    cdef int i
    cdef int best = 0
    state.chain_data.resize(n)
    for i in range(n):
        state.chain_data[i].id = i
        # The chain sorts, and sorting NaNs is undefined behaviour.
        state.chain_data[i].logit = -INFINITY if isnan(logits[i]) else logits[i]
        state.chain_data[i].p = 0
        if state.chain_data[i].logit > state.chain_data[best].logit:
            best = i
    if not isfinite(state.chain_data[best].logit):
        return LOGITS_NOT_FINITE
    if is_certain(state.chain_data[best].logit, state.recipe.temperature):
        return best
    array.data = state.chain_data.data()
    array.size = n
    array.selected = -1
    array.sorted = False
    if not apply_sampler(state.chain, &array):
        return NO_SORTING_MEMORY
    return array.data[array.selected].id


cdef llama_token sample_token(SamplerState & state, float * logits, int n_vocab,
                              const llama_token * history, size_t n_history) noexcept nogil:
    """Return the next token, or LOGITS_NOT_FINITE or NO_SORTING_MEMORY.

    The largest logit is not finite if the weights are broken.

    logits: float[n_vocab], changed during the call and restored at its end.
    history: the ledger so far, for the penalties.
    """
    cdef SamplerRecipe * recipe = &state.recipe
    cdef llama_token token
    cdef size_t i
    if recipe.repeat_penalty != 1 or recipe.frequency_penalty != 0 or recipe.presence_penalty != 0:
        apply_penalties(state, logits, n_vocab, history, n_history)
    for i in range(state.suppressed.size()):
        patch_logit(state, logits, state.suppressed[i], -INFINITY)
    if recipe.temperature <= 0:
        token = best_token(state, logits, n_vocab)
    elif needs_chain(state, n_vocab):
        token = chain_sample(state, logits, n_vocab)
    else:
        token = fused_sample(state, logits, n_vocab)
    restore_logits(state, logits)
    return token


cdef inline bint needs_chain(SamplerState & state, int n_vocab) noexcept nogil:
    return state.use_chain or not 0 < state.recipe.top_k <= n_vocab // (2 * BLOCK_SIZE)


cdef int prepare_sampler(SamplerState & state, const SamplerRecipe & recipe, bint use_chain,
                         int n_vocab, int n_ctx) except -1:
    """Set up a sampler and reserve the memory that it needs.

    n_vocab, n_ctx: 0 if not known yet.
    """
    cdef llama_sampler_chain_params params = llama_sampler_chain_default_params()
    state.recipe = recipe
    state.use_chain = use_chain
    state.rng.seed(recipe.seed)
    state.block_max.reserve((n_vocab + BLOCK_SIZE - 1) // BLOCK_SIZE)
    state.block_max_scratch.reserve((n_vocab + BLOCK_SIZE - 1) // BLOCK_SIZE)
    state.window.reserve(min(recipe.penalty_last_n, n_ctx))
    state.candidates.reserve(n_vocab)
    if recipe.temperature <= 0 or (n_vocab > 0 and not needs_chain(state, n_vocab)):
        return 0
    state.chain_data.reserve(n_vocab)
    state.chain = llama_sampler_chain_init(params)
    if recipe.top_k > 0:
        llama_sampler_chain_add(state.chain, llama_sampler_init_top_k(recipe.top_k))
    llama_sampler_chain_add(state.chain, llama_sampler_init_top_p(recipe.top_p, 1))
    llama_sampler_chain_add(state.chain, llama_sampler_init_min_p(recipe.min_p, 1))
    llama_sampler_chain_add(state.chain, llama_sampler_init_temp(recipe.temperature))
    llama_sampler_chain_add(state.chain, llama_sampler_init_dist(recipe.seed))
    return 0


cdef SamplerRecipe read_recipe(object params) except *:
    cdef SamplerRecipe recipe
    recipe.temperature = params.temperature
    recipe.top_k = params.top_k
    recipe.top_p = params.top_p
    recipe.min_p = params.min_p
    recipe.repeat_penalty = params.repeat_penalty
    recipe.frequency_penalty = params.frequency_penalty
    recipe.presence_penalty = params.presence_penalty
    recipe.penalty_last_n = params.penalty_last_n
    recipe.seed = params.seed
    return recipe


cdef float[::1] read_logits(object logits) except *:
    """Return a view of the given logits if possible, else a float32 copy."""
    cdef float[::1] values
    if logits is not None and not hides_values(logits):
        try:
            values = logits
            return values
        except (TypeError, ValueError, BufferError):
            pass
        import numpy
        try:
            found = numpy.asarray(logits)
        except (TypeError, ValueError):
            found = None
        if found is not None and found.ndim == 1 and found.dtype.kind in "fiu":
            values = numpy.array(found, numpy.float32)
            return values
    raise InvalidParameterError(
        f"logits: must be an array of numbers, shape (n_vocab,) (got {type(logits).__name__})",
        field="logits")


cdef class Sampler:
    """A sampler for logits that the caller provides.

    The engine has its own samplers; this one is for logits from elsewhere, for tests and for
    benchmarks.

    Args:
        params: GenerationParams with a seed.
        use_chain: Use llama.cpp's sampler chain even if the fused path could sample.
    """

    cdef SamplerState state

    def __cinit__(self, params, *, bint use_chain=False):
        try:
            prepare_sampler(self.state, read_recipe(params), use_chain, 0, 0)
        except (AttributeError, TypeError):
            raise InvalidParameterError(
                "params: must be GenerationParams with a seed "
                f"(got {type(params).__name__}); create_sampler() makes a sampler of any",
                field="params") from None

    def sample(self, logits, history=()):
        """Sample from the logits and return the next token id.

        Args:
            logits: Array of numbers, shape (n_vocab,), unchanged after the call. A float32 array is
                used without a copy; anything else is converted.
            history: Token ids so far, oldest first, for the penalties.

        Raises:
            InvalidParameterError: ``logits`` is not an array of numbers.
            DecodeError: There are no logits, or the largest one (NaNs aside) is not finite.
            TokenizationError: A history token is not an index of ``logits``.
        """
        cdef vector[llama_token] recent
        cdef llama_token token
        cdef size_t i
        cdef float[::1] values = read_logits(logits)
        cdef int n = <int> values.shape[0]
        read_tokens(history, recent, n - 1)
        for i in range(recent.size()):
            if not 0 <= recent[i] < n:
                raise no_such_token(recent[i], i, n - 1)
        if n == 0:
            raise DecodeError("there are no logits to sample from")
        # Keep the GIL, so that other threads never see the state or the logits half changed.
        token = sample_token(self.state, &values[0], n, recent.data(), recent.size())
        if token == NO_SORTING_MEMORY:
            raise OutOfMemoryError("there is no memory to sort the logits in")
        if token < 0:
            raise DecodeError("the largest logit is not finite: the weights are broken")
        return token
