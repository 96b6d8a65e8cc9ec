# Uses: signals, logging, cells
#
# Ownership of the decode loop, and with it of the KV memory.
#
# `running` is the right to touch sequences, batch and llama_context. A caller whose request wants
# tokens takes it for turns (engine.pxi), an operation on the memory takes it between two turns.
from llama_runner._llama_cpp.shim.handles cimport ContextBox
from llama_runner._llama_cpp.shim.state cimport Engine, NativeRequest, SequencePtr

cdef enum:
    SIGNAL_CHECK_US = 30_000


cdef void take_loop(Engine * engine, NativeRequest * leader) noexcept nogil:
    """Call with the monitor held and the loop free. leader: NULL for an operation."""
    engine.running = True
    engine.leader = leader
    engine.leader_thread = PyThread_get_thread_ident()
    # An operation is not cut short: Python runs the handlers when it is over.
    engine.checks_signals = leader is not NULL and engine.leader_thread == main_thread


cdef void leave_loop(Engine * engine, ContextBox * box) noexcept nogil:
    """Call with the monitor held. box: NULL if the context is gone."""
    if box is not NULL:
        drop_orphans(engine, box)
    engine.leader = NULL
    engine.running = False
    engine.monitor.notify_all()


cdef bint is_inside(Engine * engine) noexcept nogil:
    """Return whether this thread has the loop already, below a signal handler or callback."""
    return engine.running and engine.leader_thread == PyThread_get_thread_ident()


cdef bint acquire_loop(Engine * engine, bint to_close) noexcept nogil:
    """Take the loop between two turns.

    False if this thread has it already, or if a signal handler raised while waiting.
    """
    cdef bint in_main_thread = PyThread_get_thread_ident() == main_thread
    cdef bint raised = False
    engine.monitor.lock()
    if is_inside(engine):
        engine.monitor.unlock()
        return False
    if to_close:
        engine.closed = True
        engine.abort.store(True)
    engine.exclusive_waiting += 1
    while engine.running and not raised:
        engine.monitor.wait_ms(SIGNAL_CHECK_US // 1000)
        if in_main_thread:
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
        take_loop(engine, NULL)
    engine.monitor.unlock()
    return not raised


cdef void release_loop(Engine * engine, ContextBox * box) noexcept nogil:
    engine.monitor.lock()
    leave_loop(engine, box)
    engine.monitor.unlock()


cdef void give_up_slot(Engine * engine, ContextBox * box, SequencePtr & sequence) noexcept nogil:
    """Free a sequence's cells: now, or after the turn in hand where the loop is running.

    box: another thread may free it until the monitor is held, but not without having set `closed`.
    """
    engine.monitor.lock()
    if engine.running or engine.closed:
        sequence.get().orphan = True
        engine.has_orphans = True
    else:
        drop_cells(engine, box, sequence.get())
        engine.monitor.notify_all()
    engine.monitor.unlock()


cdef class _Exclusive:
    # `with context._exclusive():` has the loop, between two of its turns. With to_close the turn in
    # hand is cut short and none follows. A sequence is busy from before the wait, so that no
    # request begins on it meanwhile.
    cdef Context context
    cdef bint to_close
    cdef Sequence sequence
    cdef SequencePtr taken

    def __cinit__(self, Context context, bint to_close, Sequence sequence):
        self.context = context
        self.to_close = to_close
        self.sequence = sequence

    def __enter__(self):
        if self.sequence is not None:
            self.taken = self.sequence.idle()
            self.taken.get().user = <void *> self
        try:
            self._acquire()
        except BaseException:
            self._let_go()
            raise

    def __exit__(self, *exc_info):
        cdef Engine * engine = self.context.engine
        cdef ContextBox * box = self.context.box.get()
        with nogil:
            release_loop(engine, box)
        self._let_go()
        emit_deferred_log()

    def _let_go(self):
        if self.taken:
            self.taken.get().user = NULL

    def _acquire(self):
        cdef Engine * engine = self.context.engine
        cdef bint mine
        with nogil:
            mine = acquire_loop(engine, self.to_close)
        if not mine:
            if PyThread_get_thread_ident() == main_thread:
                raise_interrupt(engine)
            raise ContextBusyError(
                "a callback or signal handler that runs inside a generation cannot use its context"
            )
        if engine.closed and not self.to_close:
            with nogil:
                release_loop(engine, NULL)
            raise ClosedError("this context was closed meanwhile")
