/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Everything that lies in shared memory: the virtqueues (VIRTIO 1.2, 2.7 split, 2.8 packed), rpmsg and its name service
 * (Linux drivers/rpmsg/virtio_rpmsg_bus.c, include/linux/rpmsg/ns.h) and the resource table
 * (include/linux/remoteproc.h). Natural alignment, no packing, no bit fields, no flexible members.
 */
#ifndef RPX_WIRE_H
#define RPX_WIRE_H

#include "endian.h"

#define RPX_DESC_F_NEXT 1u
#define RPX_DESC_F_WRITE 2u
#define RPX_DESC_F_INDIRECT 4u
#define RPX_AVAIL_F_NO_INTERRUPT 1u
#define RPX_USED_F_NO_NOTIFY 1u

#define RPX_F_INDIRECT_DESC 28
#define RPX_F_EVENT_IDX 29
#define RPX_F_VERSION_1 32
#define RPX_F_RING_PACKED 34
#define RPX_RPMSG_F_NS 0

#define RPX_STATUS_ACKNOWLEDGE 1u
#define RPX_STATUS_DRIVER 2u
#define RPX_STATUS_DRIVER_OK 4u
#define RPX_STATUS_FEATURES_OK 8u
#define RPX_STATUS_NEEDS_RESET 64u
#define RPX_STATUS_FAILED 128u

#define RPX_QUEUE_MAX 32768u

struct rpx_desc {
	struct rpx_w64 addr;
	struct rpx_w32 len;
	struct rpx_w16 flags;
	struct rpx_w16 next;
};

struct rpx_used_elem {
	struct rpx_w32 id;
	struct rpx_w32 len;
};

/* avail: flags, idx, ring[num], used_event. used: flags, idx, ring[num], avail_event. */
#define RPX_RING_FLAGS 0u
#define RPX_RING_IDX 2u
#define RPX_RING_ENTRIES 4u

#define RPX_PACKED_F_AVAIL 0x0080u
#define RPX_PACKED_F_USED 0x8000u

struct rpx_packed_desc {
	struct rpx_w64 addr;
	struct rpx_w32 len;
	struct rpx_w16 id;
	struct rpx_w16 flags;
};

/* struct pvirtq_event_suppress, 32 bits read and written at once: a position in the lower half, flags in the upper. */
#define RPX_PACKED_EVENT_ENABLE 0u
#define RPX_PACKED_EVENT_DISABLE 1u
#define RPX_PACKED_EVENT_DESC 2u

#define RPX_ADDR_ANY 0xffffffffu
#define RPX_ADDR_NS 53u
#define RPX_ADDR_DYNAMIC 1024u /* the first address that is handed out; those below are reserved */

struct rpx_rpmsg_hdr {
	struct rpx_w32 src;
	struct rpx_w32 dst;
	struct rpx_w32 reserved;
	struct rpx_w16 len;
	struct rpx_w16 flags;
};

#define RPX_NS_NAME 32u
#define RPX_NS_CREATE 0u
#define RPX_NS_DESTROY 1u /* bit 0; the other bits are ignored */

struct rpx_rpmsg_ns {
	uint8_t name[RPX_NS_NAME]; /* ends with a NUL; what follows it is undefined */
	struct rpx_w32 addr;
	struct rpx_w32 flags;
};

#define RPX_RSC_CARVEOUT 0u
#define RPX_RSC_DEVMEM 1u
#define RPX_RSC_TRACE 2u
#define RPX_RSC_VDEV 3u
#define RPX_RSC_ADDR_ANY 0xffffffffu
#define RPX_VIRTIO_ID_RPMSG 7u

struct rpx_rsc_table { /* followed by offset[num] */
	uint32_t ver;
	uint32_t num;
	uint32_t reserved[2];
};

struct rpx_rsc_carveout {
	uint32_t type;
	uint32_t da;
	uint32_t pa;
	uint32_t len;
	uint32_t flags;
	uint32_t reserved;
	uint8_t name[32];
};

struct rpx_rsc_trace {
	uint32_t type;
	uint32_t da;
	uint32_t len;
	uint32_t reserved;
	uint8_t name[32];
};

struct rpx_rsc_vring {
	uint32_t da;
	uint32_t align;
	uint32_t num;
	uint32_t notifyid;
	uint32_t pa;
};

struct rpx_rsc_vdev { /* followed by vring[num_of_vrings] and config[config_len] */
	uint32_t type;
	uint32_t id;
	uint32_t notifyid;
	uint32_t dfeatures;
	uint32_t gfeatures;
	uint32_t config_len;
	uint8_t status;
	uint8_t num_of_vrings;
	uint8_t reserved[2];
};

_Static_assert(sizeof(struct rpx_desc) == 16 && offsetof(struct rpx_desc, len) == 8 &&
	       offsetof(struct rpx_desc, flags) == 12 && offsetof(struct rpx_desc, next) == 14, "struct virtq_desc");
_Static_assert(sizeof(struct rpx_packed_desc) == 16 && offsetof(struct rpx_packed_desc, id) == 12 &&
	       offsetof(struct rpx_packed_desc, flags) == 14, "struct pvirtq_desc");
_Static_assert(sizeof(struct rpx_used_elem) == 8 && offsetof(struct rpx_used_elem, len) == 4, "struct virtq_used_elem");
_Static_assert(sizeof(struct rpx_rpmsg_hdr) == 16 && offsetof(struct rpx_rpmsg_hdr, reserved) == 8 &&
	       offsetof(struct rpx_rpmsg_hdr, len) == 12 && offsetof(struct rpx_rpmsg_hdr, flags) == 14, "struct rpmsg_hdr");
_Static_assert(sizeof(struct rpx_rpmsg_ns) == 40 && offsetof(struct rpx_rpmsg_ns, addr) == 32 &&
	       offsetof(struct rpx_rpmsg_ns, flags) == 36, "struct rpmsg_ns_msg");
_Static_assert(sizeof(struct rpx_rsc_table) == 16 && sizeof(struct rpx_rsc_vring) == 20, "struct resource_table");
_Static_assert(sizeof(struct rpx_rsc_carveout) == 56 && offsetof(struct rpx_rsc_carveout, name) == 24, "fw_rsc_carveout");
_Static_assert(sizeof(struct rpx_rsc_trace) == 48 && offsetof(struct rpx_rsc_trace, name) == 16, "fw_rsc_trace");
_Static_assert(sizeof(struct rpx_rsc_vdev) == 28 && offsetof(struct rpx_rsc_vdev, status) == 24, "fw_rsc_vdev");

#endif
