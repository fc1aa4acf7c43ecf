/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The remote processor's end of rpmsg: the device role, in static memory, without libc. It reads its own resource
 * table, waits for the driver, announces its endpoints, serves them, and starts over whenever the driver does.
 *
 *   static const struct rpx_endpoint endpoints[] = {{"rpmsg-raw", 1024, on_message}};
 *   static const struct rpx_app app = {.name = "echo", .endpoints = endpoints, .n_endpoints = 1};
 *
 *   rpx_remote_init(&remote, &app, state, &port, &table, grants, n_grants, trace, sizeof(trace));
 *   rpx_remote_run(&remote);      returns after RPX_EVENT_STOP
 *
 * Only the host ever writes the table. The driver's reset is seen by the status byte (0, or 0x40 as OpenAMP writes),
 * by a changed table, or, where a reset was over before anybody looked, by rings that are not as they were left. A
 * broken ring is left alone until then; the reason stands in the trace. All of this runs in one thread.
 */
#ifndef RPX_REMOTE_H
#define RPX_REMOTE_H

#include "rpx.h"
#include "trace.h"

#ifndef RPX_REMOTE_NUM
#define RPX_REMOTE_NUM 256u /* the largest queue; what the table asks for */
#endif
#ifndef RPX_REMOTE_ALIGN
#define RPX_REMOTE_ALIGN 4096u
#endif
#ifndef RPX_REMOTE_FEATURES
#define RPX_REMOTE_FEATURES (1u << RPX_RPMSG_F_NS | 1u << RPX_F_EVENT_IDX)
#endif
#ifndef RPX_REMOTE_KIND
#define RPX_REMOTE_KIND RPX_KIND_CACHED /* enum rpx_kind of the shared memory; RPX_KIND_DEVICE is not supported */
#endif
#ifndef RPX_REMOTE_SCRATCH
#define RPX_REMOTE_SCRATCH 512u /* the longest message that may come as a chain */
#endif
#ifndef RPX_REMOTE_SEND_WAITS
#define RPX_REMOTE_SEND_WAITS 1024u /* wake-ups that rpx_remote_send spends on one message */
#endif
#define RPX_REMOTE_GRANTS 4u

/* ---------------------------------------------------------------------------------------- resource table ---- */

/* One rpmsg device with two rings, and one trace buffer. In a section of its own, written by the host. */
struct rpx_remote_table {
	struct rpx_rsc_table head;
	uint32_t offset[2];
	struct rpx_rsc_vdev vdev;
	struct rpx_rsc_vring vring[2]; /* 0: device to driver, 1: driver to device */
	struct rpx_rsc_trace trace;
};

#define RPX_REMOTE_TABLE(trace_da, trace_len) \
	{ \
		.head = {.ver = 1, .num = 2}, \
		.offset = {offsetof(struct rpx_remote_table, vdev), offsetof(struct rpx_remote_table, trace)}, \
		.vdev = {.type = RPX_RSC_VDEV, .id = RPX_VIRTIO_ID_RPMSG, .dfeatures = RPX_REMOTE_FEATURES, \
			 .num_of_vrings = 2}, \
		.vring = {{.da = RPX_RSC_ADDR_ANY, .align = RPX_REMOTE_ALIGN, .num = RPX_REMOTE_NUM}, \
			  {.da = RPX_RSC_ADDR_ANY, .align = RPX_REMOTE_ALIGN, .num = RPX_REMOTE_NUM}}, \
		.trace = {.type = RPX_RSC_TRACE, .da = (trace_da), .len = (trace_len), .name = "trace0"}, \
	}

/* ------------------------------------------------------------------------------------------------- port ----- */

/* What the host's side can tell a remote beside "look at the rings". */
#define RPX_EVENT_KICK 1u
#define RPX_EVENT_DETACH 2u /* the host goes away: forget the rings, then acknowledge */
#define RPX_EVENT_STOP 4u   /* acknowledge and return from rpx_remote_run */

/* Why a remote gave up. */
#define RPX_FAULT_UNDEFINED 1u /* an undefined instruction */
#define RPX_FAULT_ACCESS 2u    /* an access where nothing is */
#define RPX_FAULT_FATAL 3u     /* reported by software */

/* The board. Called from the remote's thread only. */
struct rpx_port {
	void *ctx;
	void (*kick)(void *ctx, uint32_t notifyid);
	uint32_t (*poll)(void *ctx); /* takes the pending RPX_EVENT bits; 0: none */
	uint32_t (*wait)(void *ctx); /* the same after waiting for one; may wake up for nothing */
	void (*ack)(void *ctx, uint32_t events);
	void (*fault)(void *ctx, uint32_t cause); /* gives up; may return where the remote is a thread */
	void (*hang)(void *ctx);                  /* stops answering; may return after RPX_EVENT_STOP */
};

/* Memory that is shared with the host: [da, da + len) in the table, [addr, addr + len) in descriptors. */
struct rpx_grant {
	uint8_t *base;
	uint64_t da;
	uint64_t addr;
	uint64_t len;
};

/* -------------------------------------------------------------------------------------------------- app ----- */

struct rpx_remote;

struct rpx_endpoint {
	const char *name; /* announced, up to 31 bytes; NULL: not announced */
	uint32_t addr;
	/* msg->data lies in shared memory, 4-aligned, until the return: read each byte once. */
	void (*receive)(struct rpx_remote *r, const struct rpx_endpoint *ept, const struct rpx_msg *msg);
};

/* Constant; what changes lives in `state` of the remote, `state_size` bytes, zeroed by rpx_remote_init. */
struct rpx_app {
	const char *name;
	const struct rpx_endpoint *endpoints;
	uint32_t n_endpoints;
	uint32_t state_size;
	void (*link)(struct rpx_remote *r, bool up); /* the driver came or went; may be NULL */
	bool (*work)(struct rpx_remote *r);          /* after each batch; true: again when a tx buffer is free; may be NULL */
};

enum rpx_link {
	RPX_LINK_DOWN = 0, /* waiting for DRIVER_OK */
	RPX_LINK_UP,
	RPX_LINK_BROKEN,   /* waiting for the driver's reset */
	RPX_LINK_DETACHED, /* detached by a host that left DRIVER_OK standing: waiting for the driver's reset */
};

struct rpx_remote {
	const struct rpx_app *app;
	void *state;
	const struct rpx_port *port;
	struct rpx_remote_table *table;
	struct rpx_trace trace;
	uint32_t events; /* taken from the port and not handled yet */
	uint32_t fault;  /* RPX_FAULT_*, where the port returned from it */
	uint32_t link;   /* enum rpx_link */

	/* This link's view of the table, and the rings made from it. */
	uint32_t features;
	struct rpx_rsc_vring vring[2];
	bool rings; /* both rings are set up */
	uint32_t announced;
	struct rpx_dev tx_q, rx_q;
	struct rpx_tx tx;
	struct rpx_rx rx;

	uint32_t received, sent, dropped;

	struct rpx_grant grants[RPX_REMOTE_GRANTS];
	uint32_t n_grants;
	struct rpx_region regions[RPX_REMOTE_GRANTS + 2u];
	struct rpx_mem mem;
	uint32_t tx_seen[RPX_REMOTE_NUM], rx_seen[RPX_REMOTE_NUM];
	uint32_t spare[2u * RPX_REMOTE_NUM];
	uint64_t scratch[RPX_REMOTE_SCRATCH / 8u];
};

/*
 * Prepare a remote; nothing is read or written outside *r, `state` and `trace`. `state` has app->state_size bytes,
 * aligned to 8. Of more than RPX_REMOTE_GRANTS grants the rest is ignored.
 */
void rpx_remote_init(struct rpx_remote *r, const struct rpx_app *app, void *state, const struct rpx_port *port,
		     struct rpx_remote_table *table, const struct rpx_grant *grants, uint32_t n_grants, char *trace,
		     uint32_t trace_size);

/* Serve until RPX_EVENT_STOP, which is acknowledged: 0. RPX_FAULT_* where port->fault returned. */
uint32_t rpx_remote_run(struct rpx_remote *r);

/* What the sending calls return beside the RPX_E_ values of a broken ring. */
enum rpx_remote_result {
	RPX_REMOTE_NONE = 0, /* no buffer */
	RPX_REMOTE_SENT = 1,
	RPX_REMOTE_DOWN = -100, /* the link is not up (any more) */
	RPX_REMOTE_SIZE = -101, /* longer than the buffer */
};

/* Stage one message; it is published with its batch. Never waits. */
int rpx_remote_try_send(struct rpx_remote *r, uint32_t src, uint32_t dst, const void *data, uint32_t len);

/* The same; without a buffer it publishes, kicks and waits, up to RPX_REMOTE_SEND_WAITS times. */
int rpx_remote_send(struct rpx_remote *r, uint32_t src, uint32_t dst, const void *data, uint32_t len);

/* Zero copy: claim a buffer, fill up to buf->cap bytes at buf->data, then commit or give it back. One at a time. */
int rpx_remote_claim(struct rpx_remote *r, struct rpx_txbuf *buf);
int rpx_remote_commit(struct rpx_remote *r, const struct rpx_txbuf *buf, uint32_t src, uint32_t dst, uint32_t len);
void rpx_remote_unclaim(struct rpx_remote *r, const struct rpx_txbuf *buf);

/* "app: text\n", "app: text value\n" to the trace. */
void rpx_remote_log(struct rpx_remote *r, const char *text);
void rpx_remote_log_u32(struct rpx_remote *r, const char *text, uint32_t value);

/* Give up, or stop answering. Where these return, the caller returns too, and touches nothing more. */
void rpx_remote_fault(struct rpx_remote *r, uint32_t cause);
void rpx_remote_hang(struct rpx_remote *r);

extern const struct rpx_app rpx_app_sample, rpx_app_flood, rpx_app_crash;

#endif
