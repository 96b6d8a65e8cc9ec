# Uses: errors, signals
#
# Model: the weights, shared by any number of contexts and threads.
import os as _os

from libc.stdint cimport int32_t, int64_t
from libc.stdio cimport FILE, fclose, fdopen, rewind
from libcpp cimport bool as cpp_bool
from libcpp.memory cimport shared_ptr

from llama_runner._llama_cpp.llama cimport (
    LLAMA_LOAD_MODE_AUTO,
    LLAMA_LOAD_MODE_DIRECT_IO,
    LLAMA_LOAD_MODE_MLOCK,
    LLAMA_LOAD_MODE_MMAP,
    LLAMA_LOAD_MODE_MMAP_MLOCK,
    LLAMA_LOAD_MODE_NONE,
    LLAMA_ROPE_TYPE_IMROPE,
    LLAMA_ROPE_TYPE_MROPE,
    LLAMA_SPLIT_MODE_LAYER,
    LLAMA_SPLIT_MODE_NONE,
    LLAMA_SPLIT_MODE_ROW,
    llama_load_mode,
    llama_model,
    llama_model_default_params,
    llama_model_desc,
    llama_model_has_decoder,
    llama_model_has_encoder,
    llama_model_is_hybrid,
    llama_model_is_recurrent,
    llama_model_load_from_file,
    llama_model_load_from_file_ptr,
    llama_model_meta_count,
    llama_model_meta_key_by_index,
    llama_model_meta_val_str_by_index,
    llama_model_n_ctx_train,
    llama_model_n_embd,
    llama_model_n_layer,
    llama_model_n_params,
    llama_model_n_swa,
    llama_model_params,
    llama_model_rope_type,
    llama_model_size,
    llama_rope_type,
    llama_split_mode,
)
from llama_runner._llama_cpp.shim.handles cimport ModelBox, own_model

_LOAD_MODES = {
    "auto": <int> LLAMA_LOAD_MODE_AUTO,
    "none": <int> LLAMA_LOAD_MODE_NONE,
    "mmap": <int> LLAMA_LOAD_MODE_MMAP,
    "mlock": <int> LLAMA_LOAD_MODE_MLOCK,
    "mmap_mlock": <int> LLAMA_LOAD_MODE_MMAP_MLOCK,
    "direct_io": <int> LLAMA_LOAD_MODE_DIRECT_IO,
}
_SPLIT_MODES = {
    "none": <int> LLAMA_SPLIT_MODE_NONE,
    "layer": <int> LLAMA_SPLIT_MODE_LAYER,
    "row": <int> LLAMA_SPLIT_MODE_ROW,
}
# Phrases in llama.cpp's error lines that mean that memory ran out.
_NO_MEMORY = (
    "insufficient memory", "failed to allocate", "unable to allocate", "Cannot allocate memory",
    "bad_alloc", "no memory at",
)


cdef class _Progress:
    # Data for the loader's callback, and its outcome.
    cdef object report
    cdef object error
    cdef bint cancelled


cdef cpp_bool on_progress(float fraction, void * data) noexcept nogil:
    cdef cpp_bool goes_on
    if not enter_python():
        return False
    goes_on = report_progress(fraction, data)
    leave_python()
    return goes_on


cdef cpp_bool report_progress(float fraction, void * data) noexcept with gil:
    cdef _Progress progress = <_Progress> data
    try:
        check_signals()
        if progress.report is not None and progress.report(fraction) is False:
            progress.cancelled = True
            return False
        return True
    except BaseException as error:
        progress.error = error  # raised again after the load has returned
        return False


cdef class Model:
    """A loaded GGUF model.

    It is immutable and can be shared by threads and contexts. A context keeps its model alive.

    Args:
        path: The GGUF file (the first part of a split one).
        n_gpu_layers: Number of layers to put on the accelerator; -1 for all of them.
        load_mode: "auto", "none", "mmap", "mlock", "mmap_mlock" or "direct_io".
        split_mode: How to distribute the model over several GPUs: "none", "layer" or "row".
        main_gpu: The GPU for everything when ``split_mode`` is "none".
        vocab_only: Read only the vocabulary and the metadata, not the weights.
        check_tensors: Look for NaNs and broken blocks while loading.
        repack: Let the CPU backend keep weights in a faster layout, which may take more memory.
        no_alloc: Do not read the weights. A context on such a model only tells how much memory it
            would take.
        file: The model's only file, already open for reading in binary mode. If given, ``path``
            is not opened and serves only as its name.
        progress: Called with the fraction loaded (0.0 to 1.0); returning False cancels.
        fingerprint: A string that identifies the file. It is stored but not interpreted.

    Raises:
        ModelLoadError: llama.cpp refused the file, or ``progress`` cancelled the load.
        OutOfMemoryError: There is not enough memory for the weights.
    """

    def __init__(self, path, *, int n_gpu_layers=-1, str load_mode="auto",
                 str split_mode="layer", int main_gpu=0, bint vocab_only=False,
                 bint check_tensors=False, bint repack=True, bint no_alloc=False,
                 file=None, progress=None, str fingerprint=""):
        cdef llama_model_params params = llama_model_default_params()
        params.n_gpu_layers = n_gpu_layers
        # Without weights there is nothing to map: llama.cpp would abort with no_alloc, and would
        # refuse a file that contains only a vocabulary, because it ends before the weights.
        if no_alloc or vocab_only:
            load_mode = "none"
        params.load_mode = <llama_load_mode> <int> _LOAD_MODES[load_mode]
        params.split_mode = <llama_split_mode> <int> _SPLIT_MODES[split_mode]
        params.main_gpu = main_gpu
        params.vocab_only = vocab_only
        params.check_tensors = check_tensors
        params.use_extra_bufts = repack
        params.no_alloc = no_alloc

        cdef _Progress watcher = _Progress()
        watcher.report = progress
        params.progress_callback = on_progress
        params.progress_callback_user_data = <void *> watcher

        cdef bytes encoded = _os.fsencode(path)
        cdef const char * name = encoded
        cdef llama_model * loaded
        cdef FILE * stream = NULL
        if file is not None:
            stream = _new_stream(file, path)
        forget_error()
        try:
            with nogil:
                if stream is NULL:
                    loaded = llama_model_load_from_file(name, params)
                else:
                    loaded = llama_model_load_from_file_ptr(stream, params)
        finally:
            if stream is not NULL:
                fclose(stream)
        if loaded is NULL:
            if watcher.error is not None:
                raise watcher.error
            if process_exits.load():
                if PyThread_get_thread_ident() != main_thread:
                    raise SystemExit  # ends only this thread, silently
                raise ModelLoadError(
                    f"{_os.fsdecode(path)} cannot be loaded: the process is ending")
            if watcher.cancelled:
                raise ModelLoadError(f"loading {_os.fsdecode(path)} was cancelled")
            native = native_line() or ""
            if any(words in native for words in _NO_MEMORY):
                raise OutOfMemoryError(
                    f"there is no memory for the weights of {_os.fsdecode(path)}: take a smaller "
                    "model or a stronger quantization", native=native
                )
            raise ModelLoadError(
                f"llama.cpp cannot load {_os.fsdecode(path)}: fetch it again, or take another "
                "version of it", native=native or None
            )
        self.box = own_model(loaded)
        self.path = _os.fsdecode(path)
        self.fingerprint = fingerprint
        self.vocab_only = vocab_only
        self.no_alloc = no_alloc

    cdef shared_ptr[ModelBox] alive(self) except *:
        if not self.box:
            raise ClosedError("this model is closed: load it again")
        check_process(self.box.get().owner, "model")
        return self.box

    def share(self):
        """Return another :class:`Model` with the same weights, which must be closed separately.

        Raises:
            ClosedError: The model is closed.
        """
        cdef Model other = Model.__new__(Model)
        other.box = self.alive()
        other.path = self.path
        other.fingerprint = self.fingerprint
        other.vocab_only = self.vocab_only
        other.no_alloc = self.no_alloc
        return other

    def close(self):
        """Release the weights. They are freed when no other model or context uses them."""
        cdef shared_ptr[ModelBox] last
        self.box.swap(last)
        with nogil:
            last.reset()

    def __dealloc__(self):
        with nogil:  # freeing gigabytes takes time
            self.box.reset()

    @property
    def closed(self):
        return not self.box

    @property
    def vocab(self):
        """The model's :class:`Vocab`."""
        cdef Vocab vocab = Vocab.__new__(Vocab)
        vocab._read_from(self)
        return vocab

    @property
    def description(self):
        """Architecture, size and quantization in one line, as llama.cpp words it."""
        cdef char text[256]
        cdef shared_ptr[ModelBox] box = self.alive()
        llama_model_desc(box.get().model, text, sizeof(text))
        return text.decode("utf-8", "replace")

    @property
    def metadata(self):
        """The scalar metadata of the file, as a dict of str to str."""
        cdef shared_ptr[ModelBox] box = self.alive()
        cdef const llama_model * model = box.get().model
        cdef char key[512]
        cdef int32_t i, n
        cdef dict found = {}
        cdef bytearray value
        for i in range(llama_model_meta_count(model)):
            if llama_model_meta_key_by_index(model, i, key, sizeof(key)) < 0:
                continue
            n = llama_model_meta_val_str_by_index(model, i, NULL, 0)
            value = bytearray(n + 1)
            llama_model_meta_val_str_by_index(model, i, <char *> value, n + 1)
            found[key.decode("utf-8", "replace")] = value[:n].decode("utf-8", "replace")
        return found

    @property
    def n_ctx_train(self):
        """Context size that the model was trained with, in tokens."""
        cdef shared_ptr[ModelBox] box = self.alive()
        return llama_model_n_ctx_train(box.get().model)

    @property
    def n_embd(self):
        cdef shared_ptr[ModelBox] box = self.alive()
        return llama_model_n_embd(box.get().model)

    @property
    def n_layer(self):
        cdef shared_ptr[ModelBox] box = self.alive()
        return llama_model_n_layer(box.get().model)

    @property
    def n_params(self):
        """Number of weights."""
        cdef shared_ptr[ModelBox] box = self.alive()
        return llama_model_n_params(box.get().model)

    @property
    def size(self):
        """Size of all tensors in bytes."""
        cdef shared_ptr[ModelBox] box = self.alive()
        return llama_model_size(box.get().model)

    @property
    def memory_kind(self):
        """Kind of context memory: "plain", "swa", "recurrent", "hybrid", "mrope" or "none"."""
        cdef shared_ptr[ModelBox] box = self.alive()
        return memory_kind_of(box.get().model)

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.close()

    def __repr__(self):
        return f"<Model {self.path!r}{' (closed)' if self.closed else ''}>"


cdef FILE * _new_stream(file, path) except NULL:
    """Open a C stream on a duplicate of a Python file's descriptor, at its start."""
    cdef int descriptor
    cdef FILE * stream
    try:
        descriptor = _os.dup(file.fileno())
    except OSError as error:
        failure = FileReadError(f"{_os.fsdecode(path)!r} cannot be read: {error.strerror}")
        failure.errno, failure.strerror = error.errno, error.strerror
        failure.filename = _os.fsdecode(path)
        raise failure from None
    stream = fdopen(descriptor, b"rb")
    if stream is NULL:
        _os.close(descriptor)
        raise MemoryError("no memory for reading a model file")
    rewind(stream)
    return stream


cdef str memory_kind_of(const llama_model * model):
    cdef llama_rope_type rope = llama_model_rope_type(model)
    if llama_model_is_hybrid(model):
        return "hybrid"
    if llama_model_is_recurrent(model):
        return "recurrent"
    if rope == LLAMA_ROPE_TYPE_MROPE or rope == LLAMA_ROPE_TYPE_IMROPE:
        return "mrope"
    if llama_model_n_swa(model) > 0:
        return "swa"
    if llama_model_has_encoder(model) or not llama_model_has_decoder(model):
        return "none"
    return "plain"
