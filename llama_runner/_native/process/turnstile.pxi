# Uses: nothing
#
# Turnstile: lets threads use a sequence one after the other, and undoes a call that raises.
#
# The context managers are compiled, because a signal handler may raise at the beginning of any
# Python function. An `__exit__` that is written in Python could then be skipped entirely.


@cython.auto_pickle(False)
cdef class Turnstile:
    """Let threads use a sequence one after the other, and undo a call that raises.

    A subclass defines how to record the state before an attempt (`mark`), how to go back to it
    (`go_back`), and how to finish work that earlier calls left (`repair`).

    Args:
        context: The context of the sequence.

    Attributes:
        sequence: The sequence to use; a subclass sets it.
        before: The state to go back to, set until the call has succeeded or was undone.
        open: An operation that goes on between calls, such as a stream, or None.
        request: The request that the call in progress waits for, or None.
        cancelled: Whether the call in progress was cancelled; it may not have a request yet.
    """

    cdef object lock
    cdef bint changing  # a call is in progress; the lock alone would let its callbacks in
    cdef readonly object context
    cdef public object sequence
    cdef public object before
    cdef public object open
    cdef public object request
    cdef public bint cancelled

    def __init__(self, context):
        self.lock = _threading.RLock()
        self.context = context

    def look(self):
        """Keep other threads from changing the sequence during a `with` block.

        A callback or signal handler may look at it in the middle of a call.

        Raises:
            ClosedError, ForkedProcessError: The sequence cannot be used any more, or not here.
        """
        return _Turn(self, False)

    def change(self):
        """Use the sequence exclusively during a `with` block.

        Raises:
            ContextBusyError: The thread is already inside such a block.
            ClosedError, ForkedProcessError: The sequence cannot be used any more, or not here.
        """
        return _Turn(self, True)

    def attempt(self):
        """Undo the changes of a `with` block if it raises. Use it inside :meth:`change`.

        Raises:
            ContextBusyError: The sequence is generating.
        """
        return _Attempt(self)

    def settle(self):
        """Finish work that earlier calls left: undo a failed one, book a stream that has ended."""
        with self.lock:
            self.repair_outside()

    cdef int repair_outside(self) except -1:
        if self.changing or (self.before is None and self.open is None):
            return 0
        self.changing = True
        try:
            self.repair()
        finally:
            self.changing = False
        return 0


@cython.auto_pickle(False)
cdef class _Turn:
    cdef Turnstile turnstile
    cdef bint changes

    def __cinit__(self, Turnstile turnstile, bint changes):
        self.turnstile = turnstile
        self.changes = changes

    def __enter__(self):
        cdef Turnstile turnstile = self.turnstile
        turnstile.context.check()  # in a forked child the lock may never be released
        turnstile.lock.acquire()
        try:
            turnstile.sequence.check()
            if self.changes and turnstile.changing:
                raise ContextBusyError(
                    "a callback or signal handler inside a call on a conversation cannot change it")
            turnstile.repair_outside()
        except BaseException:
            turnstile.lock.release()
            raise
        if self.changes:
            turnstile.changing = True
            turnstile.cancelled = False

    def __exit__(self, *exc_info):
        cdef Turnstile turnstile = self.turnstile
        if self.changes:
            turnstile.changing = False
            turnstile.request = None
        turnstile.lock.release()


@cython.auto_pickle(False)
cdef class _Attempt:
    cdef Turnstile turnstile

    def __cinit__(self, Turnstile turnstile):
        self.turnstile = turnstile

    def __enter__(self):
        self.turnstile.sequence.check_idle()
        self.turnstile.before = self.turnstile.mark()

    def __exit__(self, kind, error, trace):
        if kind is None:
            self.turnstile.before = None
            return
        if self.turnstile.request is not None:
            self.turnstile.request.close()  # the traceback may keep it, and the sequence, for long
        self.turnstile.go_back()
