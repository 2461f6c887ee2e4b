"""A GPU as a cache of immutable segments: FAISS with cuVS behind the one protocol, one worker thread a device.

Nothing here is imported, and no CUDA library loaded, unless a device was asked for or FAISS can see one. What lies on
a device can be lost at any time: a form that the CPU serves is always on disk, and every failed call is answered there.
"""
