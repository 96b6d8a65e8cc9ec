# Uses: nothing
#
# Turnstile: whose turn it is to use what threads share, and the undoing of a call that raised.
#
# The context managers are compiled, because a signal handler may raise wherever a Python function
# begins: at the beginning of an `__exit__` that is written in Python, too, which then does nothing.


@cython.auto_pickle(False)
cdef class Turnstile:
    """Let threads use a sequence one after the other, and undo a call that raises.

    A subclass says what is there before an attempt (`mark`), how to go back to it (`go_back`), and
    how to finish what earlier calls left (`repair`).

    Args:
        context: Where the sequence lives.

    Attributes:
        sequence: What is used; a subclass sets it.
        before: What to go back to. It is set until a call has ended well or was undone.
        open: What goes on between calls, as a stream does; None if nothing does.
        request: What the call in progress waits for; None if there is no such request.
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
        """Keep other threads from changing the sequence for the length of a `with` block.

        A callback or signal handler may look at it in the middle of a call.

        Raises:
            ClosedError, ForkedProcessError: The sequence cannot be used any more, or not here.
        """
        return _Turn(self, False)

    def change(self):
        """Be the only one to use the sequence for the length of a `with` block.

        Raises:
            ContextBusyError: This comes from inside such a block.
            ClosedError, ForkedProcessError: The sequence cannot be used any more, or not here.
        """
        return _Turn(self, True)

    def attempt(self):
        """Inside of :meth:`change`: undo what a `with` block has done if it raises.

        Raises:
            ContextBusyError: The sequence is generating.
        """
        return _Attempt(self)

    def settle(self):
        """Finish what earlier calls left: undo one that raised, book a stream that has ended."""
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
