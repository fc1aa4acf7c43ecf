# Endpoints by address, O(1): what the bus asks once per message that is not for the endpoint of the last one.

cdef inline uint32_t addrmap_slot(const AddrMap *m, uint32_t key) noexcept nogil:
    return (key * <uint32_t>2654435769u) >> 8 & m.mask


cdef int addrmap_init(AddrMap *m, uint32_t slots) except -1:
    m.keys = <uint32_t *>calloc(slots, sizeof(uint32_t))
    m.values = <PyObject **>calloc(slots, sizeof(PyObject *))
    if m.keys == NULL or m.values == NULL:
        addrmap_free(m)
        raise MemoryError()
    m.mask = slots - 1
    m.count = 0
    return 0


cdef void addrmap_free(AddrMap *m) noexcept:
    free(m.keys)
    free(m.values)
    m.keys = NULL
    m.values = NULL


cdef inline PyObject *addrmap_get(const AddrMap *m, uint32_t key) noexcept nogil:
    cdef uint32_t i = addrmap_slot(m, key)
    while m.values[i] != NULL:
        if m.keys[i] == key:
            return m.values[i]
        i = (i + 1) & m.mask
    return NULL


cdef int addrmap_put(AddrMap *m, uint32_t key, PyObject *value) except -1:
    cdef AddrMap bigger
    cdef uint32_t i
    if (m.count + 1) * 2 > m.mask + 1:
        addrmap_init(&bigger, (m.mask + 1) * 2)
        for i in range(m.mask + 1):
            if m.values[i] != NULL:
                addrmap_put(&bigger, m.keys[i], m.values[i])
        addrmap_free(m)
        m[0] = bigger
    i = addrmap_slot(m, key)
    while m.values[i] != NULL:
        i = (i + 1) & m.mask
    m.keys[i] = key
    m.values[i] = value
    m.count += 1
    return 0


cdef void addrmap_del(AddrMap *m, uint32_t key) noexcept:
    cdef uint32_t i = addrmap_slot(m, key)
    cdef uint32_t hole, home
    while m.values[i] != NULL and m.keys[i] != key:
        i = (i + 1) & m.mask
    if m.values[i] == NULL:
        return
    m.count -= 1
    hole = i
    while True:  # close the gap, so that probes of later keys do not end in it
        i = (i + 1) & m.mask
        if m.values[i] == NULL:
            break
        home = addrmap_slot(m, m.keys[i])
        if ((i - home) & m.mask) >= ((i - hole) & m.mask):
            m.keys[hole] = m.keys[i]
            m.values[hole] = m.values[i]
            hole = i
    m.values[hole] = NULL
