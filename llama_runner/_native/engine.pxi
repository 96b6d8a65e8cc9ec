# The decode loop: driven by its callers, one turn at a time, for all of them together.
#
# A caller puts its request among the active ones and then either finds the loop free and runs it,
# for everybody, until its own request has what it needs; or finds it running and sleeps until its
# result is there or the loop is free. There is no thread of our own: nothing outlives a call,
# and one caller alone pays a mutex per turn for it.
#
# A turn: plan a batch (one token of each decoding sequence, the rest of the budget shared by those
# that still read their prompt), decode it, sample for each sequence whose last token was in it.
# Locks: see state.hpp. The monitor is never held while llama.cpp computes. Nobody waits for it with
# the GIL in hand: what llama.cpp logs meanwhile, perhaps to Python, would wait for the GIL.
import threading as _threading

from cpython.exc cimport PyErr_CheckSignals
from cpython.ref cimport Py_DECREF, Py_INCREF
from cython.operator cimport dereference as deref
from libc.stdint cimport int32_t, int64_t
from libcpp.atomic cimport atomic

from llama_runner._llama_cpp.llama cimport (
    llama_get_logits_ith,
    llama_get_memory,
    llama_memory_seq_pos_max,
    llama_token,
    llama_vocab_is_eog,
)
from llama_runner._llama_cpp.shim cimport (
    Engine,
    Finish,
    NativeRequest,
    Phase,
    Share,
    compute_with,
    decode,
    keep_same_adapters,
    kThrew,
    now_us,
    sort_by_arrival,
)

cdef extern from "Python.h" nogil:
    unsigned long PyThread_get_thread_ident()

# Why a request failed, beside llama_decode's own return codes.
cdef int32_t NO_ROOM = 1
cdef int32_t ABORTED = 2
cdef int32_t CONTEXT_CLOSED = -101
cdef int32_t CONTEXT_BROKEN = -102
cdef int32_t NO_FINITE_LOGIT = -103

cdef int SIGNAL_CHECK_US = 30_000
cdef unsigned long main_thread = _threading.main_thread().ident
cdef atomic[cpp_bool] process_exits


# ---- who runs the loop -------------------------------------------------------------------------

cdef bint acquire_loop(Engine * engine, bint to_close) noexcept nogil:
    """Hold the loop between two turns.

    False if this very thread is inside one, or if a signal handler raised while waiting.
    """
    cdef unsigned long me = PyThread_get_thread_ident()
    cdef bint raised = False
    engine.monitor.lock()
    if engine.running and engine.leader_thread == me:
        engine.monitor.unlock()
        return False
    if to_close:
        engine.closed = True
        engine.abort.store(True)
    engine.exclusive_waiting += 1
    while engine.running and not raised:
        engine.monitor.wait_ms(SIGNAL_CHECK_US // 1000)
        if me == main_thread:
            # Not in the way of a generation that a signal handler may begin.
            engine.exclusive_waiting -= 1
            engine.monitor.unlock()
            raised = interrupted(engine)
            engine.monitor.lock()
            engine.exclusive_waiting += 1
    engine.exclusive_waiting -= 1
    if raised:
        engine.monitor.notify_all()
    else:
        engine.running = True
        engine.leader_thread = me
    engine.monitor.unlock()
    return not raised


cdef void release_loop(Engine * engine, ContextBox * box) noexcept nogil:
    engine.monitor.lock()
    if box is not NULL:
        drop_orphans(engine, box)
    engine.running = False
    engine.monitor.notify_all()
    engine.monitor.unlock()


cdef bint advance(Engine * engine, ContextBox * box, NativeRequest * request,
                  bint streaming) noexcept nogil:
    """Go on until the request is done or, when streaming, has text to show.

    False where that cannot be: this very thread is inside a turn (a signal handler or callback of
    that generation), or another one waits for this request already.
    """
    cdef unsigned long me = PyThread_get_thread_ident()
    cdef size_t i
    engine.monitor.lock()
    if (engine.running and engine.leader_thread == me) or is_active(engine, request):
        engine.monitor.unlock()
        return False
    engine.active.push_back(request)
    request.streaming = streaming
    while not is_ready(request):
        # While the loop runs, the turn in hand may hold this request: only the leader ends it.
        if engine.closed and not engine.running:
            fail(engine, box, request, CONTEXT_CLOSED)
        elif engine.broken and not engine.running:
            fail(engine, box, request, CONTEXT_BROKEN)
        elif engine.running or engine.exclusive_waiting > 0:
            engine.monitor.wait_ms(SIGNAL_CHECK_US // 1000)
            if me == main_thread:
                engine.monitor.unlock()
                if interrupted(engine):
                    request.cancelled.store(True)
                    engine.abort.store(True)
                engine.monitor.lock()
        else:
            engine.running = True
            engine.leader = request
            engine.leader_thread = me
            engine.checks_signals = me == main_thread
            while (not is_ready(request) and engine.exclusive_waiting == 0
                   and not engine.broken and not engine.closed):
                take_turn(engine, box)
                engine.monitor.notify_all()
            drop_orphans(engine, box)
            engine.working.clear()  # their callers may free them from now on
            engine.leader = NULL
            engine.running = False
            engine.monitor.notify_all()
    for i in range(engine.active.size()):
        if engine.active[i] == request:
            engine.active.erase(engine.active.begin() + i)
            break
    engine.monitor.unlock()
    return True


cdef bint is_active(Engine * engine, NativeRequest * request) noexcept nogil:
    cdef size_t i
    for i in range(engine.active.size()):
        if engine.active[i] == request:
            return True
    return False


cdef bint is_ready(NativeRequest * request) noexcept nogil:
    return (request.phase == Phase.Done or request.paused
            or (request.streaming and request.released > request.taken))


cdef void give_up_slot(Engine * engine, ContextBox * box,
                       NativeSequence * sequence) noexcept nogil:
    """Free a sequence's cells now, or after the turn in hand where the loop is running."""
    engine.monitor.lock()
    if not engine.running:
        drop_cells(engine, box, sequence)
        engine.monitor.notify_all()
    elif sequence.slot >= 0:
        engine.orphans.push_back(engine.slots[sequence.slot])
    engine.monitor.unlock()


# ---- stopping ----------------------------------------------------------------------------------

cdef cpp_bool should_abort(void * data) noexcept nogil:
    """ggml's abort callback, polled between the nodes of a graph by the leader's thread."""
    cdef Engine * engine = <Engine *> data
    if process_exits.load():
        return True
    if engine.checks_signals:
        check_signals(engine)
    # Half-moved cells cannot be made right again, and a recurrent state that is half computed is
    # lost for all in the batch: whoever cancels then waits for the end of it.
    if engine.settling or (engine.traits.recurrent and engine.shares.size() > 1):
        return False
    return engine.abort.load()


cdef void check_signals(Engine * engine) noexcept nogil:
    """Every now and then, let Python's signal handlers run; one that raises cancels the leader."""
    cdef int64_t now
    engine.polls += 1
    if engine.polls & 15:  # the clock costs more than the question
        return
    now = now_us()
    if now < engine.next_signal_check:
        return
    engine.next_signal_check = now + SIGNAL_CHECK_US
    if interrupted(engine):
        if engine.leader is not NULL:
            engine.leader.cancelled.store(True)
        engine.abort.store(True)


cdef bint interrupted(Engine * engine) noexcept with gil:
    """Run Python's signal handlers; True if one raised. The exception waits in engine.interrupt."""
    try:
        PyErr_CheckSignals()
    except BaseException as error:
        if engine.interrupt is NULL:
            Py_INCREF(error)
            engine.interrupt = <void *> error
        return True
    return False


cdef int raise_interrupt(Engine * engine) except -1:
    if engine.interrupt is NULL:
        return 0
    error = <object> engine.interrupt
    engine.interrupt = NULL
    Py_DECREF(error)
    raise error


# ---- one turn ----------------------------------------------------------------------------------

cdef void take_turn(Engine * engine, ContextBox * box) noexcept nogil:
    """Called with the monitor held and the loop owned; lets the monitor go while computing."""
    compute_turn(engine, box)
    # Their callers may free them from now on.
    engine.working.clear()
    engine.shares.clear()


cdef void compute_turn(Engine * engine, ContextBox * box) noexcept nogil:
    cdef string error
    cdef int32_t code
    cdef int64_t started
    # First lower the flag, then look at the requests: a cancel() in between raises it again.
    engine.abort.store(process_exits.load())
    drop_orphans(engine, box)
    begin_turn(engine, box)
    if engine.working.empty():
        return
    plan_batch(engine, box)
    if engine.shares.empty():
        fail(engine, box, engine.working[0], NO_ROOM)
        return
    engine.monitor.unlock()
    compute_with(deref(engine), box.context, engine.shares[0].request.sequence.get().adapters)
    settle_cells(engine, box)
    started = now_us()
    code = decode(box.context, box.batch, error)
    if code == 0 and box.batch.n_tokens >= MIN_SHARED:
        engine.prefill_us = now_us() - started
        engine.prefill_tokens = box.batch.n_tokens
    engine.monitor.lock()
    if code == 0:
        take_results(engine, box)
    else:
        recover(engine, box, code, error)
    engine.shares.clear()


cdef void drop_orphans(Engine * engine, ContextBox * box) noexcept nogil:
    cdef size_t i
    for i in range(engine.orphans.size()):
        drop_cells(engine, box, engine.orphans[i].get())
    engine.orphans.clear()


cdef void begin_turn(Engine * engine, ContextBox * box) noexcept nogil:
    """Collect the requests that want tokens, oldest first; end those that were cancelled."""
    cdef size_t i
    cdef NativeRequest * request
    engine.working.clear()
    for i in range(engine.active.size()):
        request = engine.active[i]
        if is_ready(request):
            continue  # its caller may go, and free it, while this turn computes
        if request.cancelled.load() or process_exits.load():
            finish(engine, box, request, Finish.Cancelled)
        else:
            engine.working.push_back(request)
    sort_by_arrival(engine.working)
    keep_same_adapters(engine.working)
    for i in range(engine.working.size()):
        request = engine.working[i]
        if request.suspect:
            engine.working.assign(1, request)
            break
    # Only now, when all that work are known: making room for one must not move out an older one.
    for i in range(engine.working.size()):
        begin_sequence(engine, box, engine.working[i])


cdef void begin_sequence(Engine * engine, ContextBox * box, NativeRequest * request) noexcept nogil:
    cdef NativeSequence * sequence = request.sequence.get()
    engine.clock += 1
    sequence.last_used = engine.clock
    sequence.warm = False
    if sequence.n_kv == 0:
        request.n_shared = bring_in(engine, box, request.sequence, request.arrival)
    # The last token's logits are needed, so at least that one is decoded (again).
    trim_cells(engine, box, sequence, <int32_t> sequence.tokens.size() - 1)
    if request.phase == Phase.Waiting:
        request.n_shared = min(request.n_shared, sequence.n_kv)
        request.n_reused = sequence.n_kv - request.n_shared
        request.phase = Phase.Prefill


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
    engine.turn += 1  # another one begins each time, so that nobody is always last
    for i in range(n):
        request = engine.working[(i + engine.turn) % n]
        if n_pending(request) > 1:
            n_prompts += 1
        elif budget > 0 and make_room(engine, box, request.sequence, request.arrival, 1):
            add_share(engine, box, request, 1)
            budget -= 1
    for i in range(n):
        request = engine.working[(i + engine.turn) % n]
        if n_pending(request) <= 1 or budget <= 0 or request.in_batch:
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
            take_token(engine, box, share.request,
                       llama_get_logits_ith(box.context, share.output_index))


cdef void recover(Engine * engine, ContextBox * box, int32_t code,
                  const string & error) noexcept nogil:
    """Make the ledgers true again after a failed decode, and find whose failure it was."""
    cdef size_t i
    cdef NativeSequence * sequence
    cdef NativeRequest * request
    cdef int32_t pos_max
    if code == kThrew:
        # llama.cpp gives no promise about a context that was thrown out of.
        engine.broken = True
        for i in range(engine.working.size()):
            engine.working[i].error = error
            fail(engine, box, engine.working[i], CONTEXT_BROKEN)
        return
    for i in range(engine.shares.size()):
        sequence = engine.shares[i].request.sequence.get()
        if code == NO_ROOM or code == -1:
            continue  # the memory is as it was
        pos_max = llama_memory_seq_pos_max(llama_get_memory(box.context), sequence.slot)
        if engine.traits.recurrent or pos_max + 1 < sequence.n_kv:
            drop_cells(engine, box, sequence)
        else:
            sequence.n_kv = pos_max + 1
    if code == ABORTED:
        return  # the next turn ends who was cancelled and goes on with the others
    if engine.shares.size() == 1:
        request = engine.shares[0].request
        request.error = error
        fail(engine, box, request, code)
        return
    # Somebody in the batch is at fault: let each go alone once, and only the guilty one will fail.
    for i in range(engine.shares.size()):
        engine.shares[i].request.suspect = True


cdef void take_token(Engine * engine, ContextBox * box, NativeRequest * request,
                     float * logits) noexcept nogil:
    """Sample one token and append it to ledger and text, or end the request."""
    cdef NativeSequence * sequence = request.sequence.get()
    cdef size_t text_size = request.text.size()
    cdef llama_token token
    if request.probe:
        request.logits.assign(logits, logits + engine.traits.n_vocab)
        finish(engine, box, request, Finish.Stop)
        return
    token = sample_token(
        request.sampler, logits, engine.traits.n_vocab, sequence.tokens.data(),
        sequence.tokens.size())
    if token < 0:
        fail(engine, box, request, NO_FINITE_LOGIT)
        return
    if request.phase == Phase.Prefill:
        request.phase = Phase.Decode
        request.t_first = now_us()
    sequence.tokens.push_back(token)
    if llama_vocab_is_eog(engine.traits.vocab, token):
        finish(engine, box, request, Finish.Stop)
        return
    request.output.push_back(token)
    request.output_starts.push_back(text_size)
    append_piece(engine.traits.vocab, token, False, request.text, request.error)
    if meets_stop(request, text_size):
        cut_at_stop(request)
        trim_cells(engine, box, sequence, <int32_t> sequence.tokens.size())
        finish(engine, box, request, Finish.Stop)
    elif (<int32_t> request.output.size() >= request.max_tokens
          or <int32_t> sequence.tokens.size() >= engine.traits.n_ctx_seq):
        finish(engine, box, request, Finish.Length)
    else:
        request.released = max(request.released, showable(request))
        if 0 < request.pause_at <= <int32_t> sequence.tokens.size():
            # The caller makes room, with Python's policies, and resumes.
            request.paused = True
            sequence.busy = False


cdef void finish(Engine * engine, ContextBox * box, NativeRequest * request,
                 Finish reason) noexcept nogil:
    request.finish = reason
    request.phase = Phase.Done
    request.t_end = now_us()
    request.released = request.text.size()
    request.sequence.get().busy = False
    if request.temporary:
        drop_cells(engine, box, request.sequence.get())


cdef void fail(Engine * engine, ContextBox * box, NativeRequest * request,
               int32_t code) noexcept nogil:
    request.failure = code
    request.finish = Finish.Failed
    request.phase = Phase.Done
    request.t_end = now_us()
    request.sequence.get().busy = False
    if request.temporary and not engine.closed and not engine.broken:
        drop_cells(engine, box, request.sequence.get())
