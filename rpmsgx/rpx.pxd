# The C headers of csrc, one to one (csrc/rpx/*.h has the documentation).
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from "rpx.h" nogil:
    enum:
        RPX_E_AVAIL_IDX
        RPX_E_CHAIN_BYTES
        RPX_E_DESC_READONLY
        RPX_E_INVAL
        RPX_E_FULL
        RPX_HDR
        RPX_NS_DESTROY
        RPX_PERM_READ
        RPX_PERM_WRITE
        RPX_RX_EMPTY
        RPX_RX_MESSAGE
        RPX_RX_SHORT
        RPX_RX_LONG
        RPX_TX_NONE
        RPX_TX_BUFFER
        RPX_TX_LONG
        RPX_STATUS_DRIVER_OK
        RPX_STATUS_NEEDS_RESET
        RPX_QUEUE_MAX
        RPX_BIG_ENDIAN

    const uint32_t RPX_ADDR_ANY
    const uint32_t RPX_ADDR_NS
    const uint32_t RPX_ADDR_DYNAMIC

    enum rpx_order:
        RPX_ORDER_SMP
        RPX_ORDER_DEVICE

    enum rpx_kind:
        RPX_KIND_CACHED
        RPX_KIND_UNCACHED
        RPX_KIND_DEVICE

    const char *rpx_error_rule(int)
    const char *rpx_error_text(int)
    uint16_t rpx_idx_diff(uint16_t, uint16_t)
    bint rpx_need_event(uint16_t, uint16_t, uint16_t)
    void rpx_fence_full(rpx_order)
    uint8_t rpx_load8(const uint8_t *)
    uint8_t rpx_load8_acquire(const uint8_t *, rpx_order)
    void rpx_store8_release(uint8_t *, uint8_t, rpx_order)

    struct rpx_w16:
        pass
    struct rpx_w32:
        pass
    uint16_t rpx_get16(const rpx_w16 *, bint)
    uint32_t rpx_get32(const rpx_w32 *, bint)
    void rpx_put16(rpx_w16 *, uint16_t, bint)
    void rpx_put32(rpx_w32 *, uint32_t, bint)

    struct rpx_region:
        uint8_t *base
        uint64_t addr
        uint64_t len
        uint32_t perm
    struct rpx_mem:
        const rpx_region *regions
        uint32_t count
    uint8_t *rpx_mem_at(const rpx_mem *, uint64_t, uint64_t, uint32_t)
    rpx_order rpx_kind_order(rpx_kind)
    void rpx_copy_from(void *, const void *, size_t, rpx_kind)
    void rpx_copy_to(void *, const void *, size_t, rpx_kind)

    struct rpx_desc:
        pass
    struct rpx_rpmsg_ns:
        uint8_t name[32]
        rpx_w32 addr
        rpx_w32 flags

    struct rpx_ring:
        uint8_t *desc
        uint8_t *avail
        uint8_t *used
        uint16_t num
        uint8_t order
        bint swap
        bint event_idx
        bint indirect
    uint32_t rpx_ring_used_offset(uint32_t, uint32_t)
    uint32_t rpx_ring_bytes(uint32_t, uint32_t)
    int rpx_ring_init(rpx_ring *, uint8_t *, uint8_t *, uint8_t *, uint32_t, rpx_order, bint)
    int rpx_ring_init_legacy(rpx_ring *, uint8_t *, uint32_t, uint32_t, rpx_order, bint)
    void rpx_ring_zero(const rpx_ring *)
    uint16_t rpx_ring_avail_idx(const rpx_ring *)
    uint16_t rpx_ring_used_idx(const rpx_ring *)

    struct rpx_drv_slot:
        pass
    struct rpx_drv:
        rpx_ring ring
        rpx_drv_slot *slots
        int broken
        uint16_t avail_idx
        uint16_t avail_pub
        uint16_t last_used
        uint16_t num_free
        bint muted
    struct rpx_used:
        uint32_t cookie
        uint32_t len
    struct rpx_sg:
        uint64_t addr
        uint32_t len
    uint16_t rpx_drv_in_flight(const rpx_drv *)
    void rpx_drv_init(rpx_drv *, const rpx_ring *, rpx_drv_slot *)
    int rpx_drv_add1(rpx_drv *, uint64_t, uint32_t, bint, uint32_t)
    int rpx_drv_add(rpx_drv *, const rpx_sg *, uint32_t, uint32_t, uint32_t)
    int rpx_drv_add_indirect(rpx_drv *, rpx_desc *, uint64_t, const rpx_sg *, uint32_t, uint32_t, uint32_t)
    bint rpx_drv_publish(rpx_drv *)
    int rpx_drv_get(rpx_drv *, rpx_used *)
    void rpx_drv_mute(rpx_drv *)
    bint rpx_drv_unmute(rpx_drv *)

    struct rpx_dev:
        rpx_ring ring
        uint32_t *seen
        int broken
        uint16_t last_avail
        uint16_t used_idx
        uint16_t used_pub
        uint16_t held
        bint muted
    struct rpx_seg:
        uint8_t *ptr
        uint32_t len
        bint write
    struct rpx_chain:
        pass
    void rpx_dev_init(rpx_dev *, const rpx_ring *, uint32_t *, uint16_t, uint16_t)
    int rpx_dev_pop(rpx_dev *, uint16_t *)
    int rpx_dev_single(rpx_dev *, const rpx_mem *, uint16_t, rpx_seg *)
    void rpx_chain_begin(rpx_chain *, const rpx_dev *, uint16_t, uint32_t)
    int rpx_chain_next(rpx_chain *, rpx_dev *, const rpx_mem *, rpx_seg *)
    int rpx_dev_push(rpx_dev *, uint16_t, uint32_t)
    bint rpx_dev_publish(rpx_dev *)
    void rpx_dev_mute(rpx_dev *)
    bint rpx_dev_unmute(rpx_dev *)

    struct rpx_packed_desc:
        pass
    struct rpx_packed_ring:
        rpx_packed_desc *desc
        rpx_w32 *driver
        rpx_w32 *device
        uint16_t num
        bint swap
        bint event_idx
        bint indirect
    struct rpx_packed_buf:
        pass
    struct rpx_packed:
        rpx_packed_ring ring
        int broken
        uint32_t pub
        uint16_t num_free
        uint32_t taken
        uint32_t given
    struct rpx_packed_chain:
        uint16_t id
    const uint32_t RPX_PACKED_START
    const char *rpx_packed_error_rule(int)
    const char *rpx_packed_error_text(int)
    int rpx_packed_ring_init(rpx_packed_ring *, uint8_t *, uint8_t *, uint8_t *, uint32_t, rpx_order, bint)
    void rpx_packed_ring_zero(const rpx_packed_ring *)
    void rpx_packed_init(rpx_packed *, const rpx_packed_ring *, rpx_packed_buf *, bint, uint32_t)
    bint rpx_packed_publish(rpx_packed *)
    void rpx_packed_mute(rpx_packed *)
    bint rpx_packed_unmute(rpx_packed *)
    int rpx_packed_add(rpx_packed *, const rpx_sg *, uint32_t, uint32_t, uint32_t)
    int rpx_packed_add_indirect(rpx_packed *, rpx_packed_desc *, uint64_t, const rpx_sg *, uint32_t, uint32_t, uint32_t)
    int rpx_packed_get(rpx_packed *, rpx_used *)
    int rpx_packed_pop(rpx_packed *, rpx_packed_chain *)
    int rpx_packed_next(rpx_packed_chain *, rpx_packed *, const rpx_mem *, rpx_seg *)
    int rpx_packed_push(rpx_packed *, uint16_t, uint32_t)

    struct rpx_pool:
        uint8_t *base
        uint64_t addr
        uint32_t size
        uint32_t count
    struct rpx_msg:
        const uint8_t *data
        uint32_t src
        uint32_t dst
        uint32_t token
        uint32_t room
        uint16_t len
        bint copied
    struct rpx_rx:
        rpx_drv *drv
        rpx_dev *dev
        rpx_packed *packed
        const rpx_mem *mem
        rpx_pool pool
        uint8_t *scratch
        uint32_t scratch_size
        bint swap
        bint whole
        uint8_t kind
    int rpx_rx_post(rpx_rx *)
    int rpx_rx_next(rpx_rx *, rpx_msg *)
    int rpx_rx_done(rpx_rx *, uint32_t)
    int rpx_rx_look(const rpx_rx *)
    bint rpx_rx_peek(const rpx_rx *, rpx_msg *)
    void rpx_rx_turn(const rpx_rx *, const rpx_msg *)
    bint rpx_rx_publish(rpx_rx *)
    void rpx_rx_mute(rpx_rx *)
    bint rpx_rx_unmute(rpx_rx *)
    bint rpx_rx_pending(const rpx_rx *)
    uint32_t rpx_rx_num(const rpx_rx *)
    int rpx_rx_broken(const rpx_rx *)

    struct rpx_tx:
        rpx_drv *drv
        rpx_dev *dev
        rpx_packed *packed
        const rpx_mem *mem
        rpx_pool pool
        uint32_t *spare
        uint32_t n_spare
        uint32_t fresh
        uint32_t room
        bint swap
        bint whole
        uint8_t kind
    struct rpx_txbuf:
        uint8_t *data
        uint32_t cap
        uint32_t token
    const char *rpx_rx_resume(rpx_rx *rx)
    const char *rpx_tx_resume(rpx_tx *tx)
    void rpx_tx_start_drv(rpx_tx *)
    int rpx_tx_get(rpx_tx *, rpx_txbuf *)
    void rpx_tx_unget(rpx_tx *, const rpx_txbuf *)
    int rpx_tx_put(rpx_tx *, const rpx_txbuf *, uint32_t, uint32_t, uint32_t)
    bint rpx_tx_turn(rpx_tx *, uint32_t, uint32_t, const void *, size_t)
    int rpx_tx_send(rpx_tx *, uint32_t, uint32_t, const void *, size_t)
    bint rpx_tx_publish(rpx_tx *)
    void rpx_tx_mute(rpx_tx *)
    bint rpx_tx_unmute(rpx_tx *)
    bint rpx_tx_pending(const rpx_tx *)
    uint32_t rpx_tx_posted(const rpx_tx *)
    uint32_t rpx_tx_outstanding(const rpx_tx *, uint32_t)
    int rpx_tx_broken(const rpx_tx *)

    struct rpx_rx_run:
        uint32_t n
        uint32_t max
    void rpx_rx_run_begin(rpx_rx_run *, const rpx_rx *, uint32_t)
    bint rpx_rx_run_peek(const rpx_rx_run *, rpx_msg *)
    void rpx_rx_run_turn(rpx_rx_run *, const rpx_msg *)
    void rpx_rx_run_end(const rpx_rx_run *, rpx_rx *)
    struct rpx_tx_run:
        uint32_t n
        uint32_t max
    void rpx_tx_run_begin(rpx_tx_run *, const rpx_tx *, uint32_t)
    bint rpx_tx_run_turn(rpx_tx_run *, uint32_t, uint32_t, const void *, size_t)
    void rpx_tx_run_end(const rpx_tx_run *, rpx_tx *)

    void rpx_ns_encode(rpx_rpmsg_ns *, const char *, uint32_t, bint, bint)
    uint32_t rpx_ns_name_len(const rpx_rpmsg_ns *)
