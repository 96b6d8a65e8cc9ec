# Uses: signals, sampler, state, cells, parking, room, sharing, stop_strings
#
# One turn of the decode loop: plan a batch (one token of each decoding sequence, the rest of the
# budget shared by those that still read their prompt), decode it, sample for each sequence whose
# last token was in it.
from cython.operator cimport dereference as deref
from libc.stdint cimport int32_t, int64_t

from llama_runner._llama_cpp.llama cimport (
    llama_get_logits_ith,
    llama_token,
    llama_vocab_is_eog,
)
from llama_runner._llama_cpp.shim.finite cimport cells_are_finite, zero_cells
from llama_runner._llama_cpp.shim.guard cimport decode, kNoMemory, kThrew
from llama_runner._llama_cpp.shim.state cimport (
    Engine,
    Finish,
    NativeRequest,
    Phase,
    Share,
    break_context,
    compute_with,
    has_room_for_turn,
    keep_same_adapters,
    last_in_memory,
    now_us,
    set_text,
    sort_by_arrival,
)

# Why a request failed, beside llama_decode's own return codes.
cdef enum:
    NO_ROOM = 1
    ABORTED = 2
    CONTEXT_CLOSED = -101
    CONTEXT_BROKEN = -102
    NO_FINITE_LOGIT = -103
    OUT_OF_RANGE = -104


cdef void take_turn(Engine * engine, ContextBox * box) noexcept nogil:
    """Called with the monitor held and the loop owned.

    Releases the monitor for all that takes time: computing, and moving states in and out. Meanwhile
    it touches only those fields of the requests that no caller reads.
    """
    cdef string error
    cdef int32_t code = NO_ROOM
    cdef size_t i
    # First lower the flag, then look at the requests: a cancel() in between raises it again.
    engine.abort.store(process_exits.load())
    drop_orphans(engine, box)
    if not has_room_for_turn(deref(engine)):
        fail_active(engine, box, -2)
        return
    collect_requests(engine, box)
    if engine.working.empty():
        return
    engine.monitor.unlock()
    for i in range(engine.working.size()):
        begin_sequence(engine, box, engine.working[i])
    plan_batch(engine, box)
    if not engine.shares.empty():
        code = compute_batch(engine, box, error)
        if code == 0:
            choose_tokens(engine, box)
    engine.monitor.lock()
    if engine.shares.empty():
        fail_request(engine, box, engine.working[0], NO_ROOM)
    elif code == 0:
        take_results(engine, box)
    else:
        recover(engine, box, code, error)
    # Their callers may free them from now on.
    engine.working.clear()
    engine.shares.clear()


cdef int32_t compute_batch(Engine * engine, ContextBox * box, string & error) noexcept nogil:
    """Decode the batch. Return llama_decode's code, kThrew, kNoMemory or OUT_OF_RANGE."""
    cdef int32_t code
    cdef int64_t started
    settle_cells(engine, box)
    if engine.broken.load():
        set_text(error, engine.broken_by)
        return CONTEXT_BROKEN
    code = compute_with(
        deref(engine), box.context, engine.shares[0].request.sequence.get().adapters, error)
    if code != 0:
        return code
    started = now_us()
    code = decode(box.context, box.batch, error)
    if code == 0 and box.batch.n_tokens >= MIN_SHARED:
        engine.prefill_us = now_us() - started
        engine.prefill_tokens = box.batch.n_tokens
    if code == 0 and not wrote_finite(engine):
        return OUT_OF_RANGE
    return code


cdef void fail_active(Engine * engine, ContextBox * box, int32_t code) noexcept nogil:
    """End all requests whose callers wait, with the monitor held and no turn in hand."""
    cdef size_t i
    for i in range(engine.active.size()):
        if not is_ready(engine.active[i]):
            fail_request(engine, box, engine.active[i], code)


cdef bint wrote_finite(Engine * engine) noexcept nogil:
    """Return whether the keys and values of the batch are finite, as attention passes over them."""
    cdef size_t i
    cdef NativeSequence * sequence
    for i in range(engine.shares.size()):
        sequence = engine.shares[i].request.sequence.get()
        if not cells_are_finite(engine.cells, sequence.slot, sequence.n_kv,
                                sequence.n_kv + engine.shares[i].n_tokens):
            return False
    return True


cdef void undo_batch(Engine * engine, ContextBox * box) noexcept nogil:
    """Take what the batch wrote out of the memory, and leave zeros there."""
    cdef size_t i
    cdef NativeSequence * sequence
    cdef int32_t before
    for i in range(engine.shares.size()):
        sequence = engine.shares[i].request.sequence.get()
        before = sequence.n_kv
        sequence.n_kv += engine.shares[i].n_tokens
        zero_cells(engine.cells, sequence.slot, before, sequence.n_kv)
        trim_cells(engine, box, sequence, before)


cdef void collect_requests(Engine * engine, ContextBox * box) noexcept nogil:
    """Sort the requests that want tokens, oldest first, and end those that were cancelled."""
    cdef size_t i
    cdef NativeRequest * request
    engine.working.clear()
    for i in range(engine.active.size()):
        request = engine.active[i]
        if is_ready(request):
            continue  # its caller may go, and free it, while this turn computes
        if request.cancelled.load() or process_exits.load():
            finish_request(engine, box, request, Finish.Cancelled)
        else:
            engine.working.push_back(request)
    sort_by_arrival(engine.working)
    keep_same_adapters(engine.working)
    for i in range(engine.working.size()):
        request = engine.working[i]
        if request.suspect:
            engine.working.assign(1, request)
            return


cdef void begin_sequence(Engine * engine, ContextBox * box, NativeRequest * request) noexcept nogil:
    """Find which of its tokens are in the memory, or can be brought in without computing them.

    Called when all participants are known: making room for one must not evict an older one.
    """
    cdef NativeSequence * sequence = request.sequence.get()
    cdef bint looks = sequence.n_kv == 0 or not request.begun
    cdef int32_t n_shared = 0
    engine.clock += 1
    sequence.last_used = engine.clock
    sequence.warm = False
    if looks:
        n_shared = bring_in(engine, box, request.sequence, request.arrival)
        if is_kept_aside(sequence):
            return  # until those that came before it leave room
    request.begun = True
    # The last token's logits are needed, so at least that one is decoded (again).
    trim_cells(engine, box, sequence, <int32_t> sequence.tokens.size() - 1)
    if looks and request.n_prefilled == 0:
        request.n_shared = min(n_shared, sequence.n_kv)
        request.n_reused = sequence.n_kv - request.n_shared


cdef inline int32_t n_pending(NativeRequest * request) noexcept nogil:
    cdef NativeSequence * sequence = request.sequence.get()
    return <int32_t> sequence.tokens.size() - sequence.n_kv


cdef void plan_batch(Engine * engine, ContextBox * box) noexcept nogil:
    """Fill the batch: decoding sequences first, then prompts in equal parts."""
    cdef size_t i, n = engine.working.size()
    cdef int32_t budget = engine.traits.n_ubatch
    cdef int32_t n_prompts = 0
    cdef int32_t part
    cdef NativeRequest * request
    box.batch.n_tokens = 0
    engine.shares.clear()
    engine.turn += 1  # each turn begins with another request, so that none is always last
    for i in range(n):
        request = engine.working[(i + engine.turn) % n]
        if is_kept_aside(request.sequence.get()):
            continue
        if n_pending(request) > 1:
            n_prompts += 1
        elif budget > 0 and make_room(engine, box, request.sequence, request.arrival, 1):
            add_share(engine, box, request, 1)
            budget -= 1
    for i in range(n):
        request = engine.working[(i + engine.turn) % n]
        if (n_pending(request) <= 1 or budget <= 0 or request.in_batch
                or is_kept_aside(request.sequence.get())):
            continue
        part = min(n_pending(request), max(1, budget // max(1, n_prompts)))
        n_prompts -= 1
        if make_room(engine, box, request.sequence, request.arrival, part):
            add_share(engine, box, request, part)
            budget -= part
    for i in range(engine.shares.size()):
        engine.shares[i].request.in_batch = False


cdef void add_share(Engine * engine, ContextBox * box, NativeRequest * request,
                    int32_t n) noexcept nogil:
    cdef NativeSequence * sequence = request.sequence.get()
    cdef Share share
    cdef int32_t i, at
    cdef int32_t first = box.batch.n_tokens
    for i in range(n):
        at = first + i
        box.batch.token[at] = sequence.tokens[sequence.n_kv + i]
        box.batch.pos[at] = sequence.n_kv + i
        box.batch.n_seq_id[at] = 1
        box.batch.seq_id[at][0] = sequence.slot
        box.batch.logits[at] = 0
    box.batch.n_tokens = first + n
    share.request = request
    share.n_tokens = n
    share.output_index = -1
    if sequence.n_kv + n == <int32_t> sequence.tokens.size():
        share.output_index = first + n - 1
        box.batch.logits[share.output_index] = 1
    request.in_batch = True
    engine.shares.push_back(share)


# ---- after the computation ---------------------------------------------------------------------

cdef void choose_tokens(Engine * engine, ContextBox * box) noexcept nogil:
    """Sample for each whose last token was in the batch; what samplers hold is the loop's alone."""
    cdef size_t i
    cdef float * logits
    cdef Share * share
    cdef NativeSequence * sequence
    for i in range(engine.shares.size()):
        share = &engine.shares[i]
        if share.output_index < 0:
            continue
        logits = llama_get_logits_ith(box.context, share.output_index)
        sequence = share.request.sequence.get()
        if share.request.probe:
            share.request.logits.assign(logits, logits + engine.traits.n_vocab)
        else:
            share.token = sample_token(
                share.request.sampler, logits, engine.traits.n_vocab, sequence.tokens.data(),
                sequence.tokens.size())


cdef void take_results(Engine * engine, ContextBox * box) noexcept nogil:
    cdef size_t i
    cdef Share * share
    for i in range(engine.shares.size()):
        share = &engine.shares[i]
        share.request.suspect = False
        share.request.sequence.get().n_kv += share.n_tokens
        if share.request.phase == Phase.Prefill:
            share.request.n_prefilled += share.n_tokens
        if share.output_index >= 0:
            take_token(engine, box, share.request, share.token)


cdef void recover(Engine * engine, ContextBox * box, int32_t code,
                  const string & error) noexcept nogil:
    """Make the ledgers true again after a failed decode, and find whose failure it was."""
    cdef size_t i
    cdef NativeSequence * sequence
    cdef NativeRequest * request
    cdef int32_t pos_max
    if code == kThrew or code == kNoMemory or code == CONTEXT_BROKEN:
        break_context(deref(engine), error)
        for i in range(engine.working.size()):
            set_text(engine.working[i].error, error)
            fail_request(engine, box, engine.working[i], code)
        return
    if code == OUT_OF_RANGE:
        undo_batch(engine, box)
    for i in range(engine.shares.size()):
        sequence = engine.shares[i].request.sequence.get()
        if code == NO_ROOM or code == -1 or code == OUT_OF_RANGE:
            continue  # the memory is as it was
        pos_max = last_in_memory(deref(engine), box.context, sequence.slot)
        if engine.traits.recurrent or pos_max + 1 < sequence.n_kv:
            drop_cells(engine, box, sequence)
        else:
            sequence.n_kv = pos_max + 1
    if code == ABORTED:
        return  # the next turn ends the cancelled requests and continues with the others
    if engine.shares.size() == 1:
        request = engine.shares[0].request
        set_text(request.error, error)
        fail_request(engine, box, request, code)
        return
    # One request in the batch is at fault: decode each alone once, and only that one will fail.
    for i in range(engine.shares.size()):
        engine.shares[i].request.suspect = True


cdef void take_token(Engine * engine, ContextBox * box, NativeRequest * request,
                     llama_token token) noexcept nogil:
    """Append a sampled token to ledger and text, or end the request."""
    cdef NativeSequence * sequence = request.sequence.get()
    cdef size_t text_size = request.text.size()
    if request.probe:
        finish_request(engine, box, request, Finish.Stop)
        return
    if token < 0:
        fail_request(engine, box, request, -2 if token == NO_SORTING_MEMORY else NO_FINITE_LOGIT)
        return
    if request.phase == Phase.Prefill:
        request.phase = Phase.Decode
        request.t_first = now_us()
    sequence.tokens.push_back(token)
    if llama_vocab_is_eog(engine.traits.vocab, token):
        finish_request(engine, box, request, Finish.Stop)
        return
    request.output.push_back(token)
    request.output_starts.push_back(text_size)
    if append_piece(engine.traits.vocab, token, False, request.text, request.error) != 0:
        fail_request(engine, box, request, -2)
    elif meets_stop(request, text_size):
        take_back(engine, box, request, cut_at_stop(request))
        finish_request(engine, box, request, Finish.Stop)
    elif (<int32_t> request.output.size() >= request.max_tokens
          or <int32_t> sequence.tokens.size() >= engine.traits.n_ctx_seq):
        finish_request(engine, box, request, Finish.Length)
    else:
        request.released = max(request.released, showable(request))
        if 0 < request.pause_at <= <int32_t> sequence.tokens.size():
            # The caller makes room, with Python's policies, and resumes.
            request.paused = True


cdef void take_back(Engine * engine, ContextBox * box, NativeRequest * request,
                    int32_t n) noexcept nogil:
    """Take the last n tokens off the ledger.

    If a recurrent state contains them already, the ledger's owner does it, as it may have a copy
    of an earlier state. The owner also appends the tokens of the text that is kept of them.
    """
    cdef NativeSequence * sequence = request.sequence.get()
    cdef int32_t n_left = <int32_t> sequence.tokens.size() - n
    if request.kept_from < request.text.size():
        request.stop_at = n_left
    if engine.traits.recurrent and sequence.n_kv > n_left:
        request.stop_at = n_left
        return
    sequence.tokens.resize(n_left)
    trim_cells(engine, box, sequence, n_left)


cdef void finish_request(Engine * engine, ContextBox * box, NativeRequest * request,
                         Finish reason) noexcept nogil:
    request.finish = reason
    request.phase = Phase.Done
    request.released = request.text.size()
    let_go(request)
    if request.temporary and not engine.closed and not engine.broken.load():
        drop_cells(engine, box, request.sequence.get())


cdef void fail_request(Engine * engine, ContextBox * box, NativeRequest * request,
                       int32_t code) noexcept nogil:
    request.failure = code
    finish_request(engine, box, request, Finish.Failed)
