/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * "rpmsg-crash": dies or lies on command, so that hosts can be tested. The first byte of a message says how; any
 * other message is answered with the same bytes.
 *
 *   u  executes an undefined instruction        i  used.idx jumps by more than the queue holds
 *   a  accesses memory where nothing is         d  used.id is outside the descriptor table
 *   f  reports a fatal error                    l  used.len is longer than the buffer
 *   h  hangs                                    m  the header says more than the buffer holds
 *
 * The four on the right are done to vring 0 (device to driver).
 */
#include "remote/remote.h"

/* Publish one used entry that no honest device would write. */
static void crash_used(struct rpx_remote *r, uint32_t id_offset, uint32_t len, const struct rpx_txbuf *buf)
{
	struct rpx_dev *q = &r->tx_q;
	struct rpx_used_elem *e = rpx_ring_used_entry(&q->ring, q->used_idx);
	rpx_put32(&e->id, buf->token + id_offset, q->ring.swap);
	rpx_put32(&e->len, len, q->ring.swap);
	q->used_idx++;
}

static void crash_ring(struct rpx_remote *r, const struct rpx_endpoint *ept, uint32_t dst, uint8_t how)
{
	struct rpx_dev *q = &r->tx_q;
	struct rpx_txbuf buf;
	if (how == 'i') {
		q->used_idx = (uint16_t)(q->used_idx + q->ring.num + 1u);
		return;
	}
	if (rpx_remote_claim(r, &buf) != RPX_TX_BUFFER)
		return;
	if (how == 'd') {
		crash_used(r, q->ring.num, RPX_HDR, &buf);
	} else if (how == 'l') {
		crash_used(r, 0, RPX_HDR + buf.cap + 1u, &buf);
	} else if (rpx_remote_commit(r, &buf, ept->addr, dst, 1) == RPX_REMOTE_SENT) {
		struct rpx_rpmsg_hdr *h = (struct rpx_rpmsg_hdr *)(void *)(buf.data - RPX_HDR);
		rpx_put16(&h->len, 0xffff, r->tx.swap);
	}
}

static void crash_receive(struct rpx_remote *r, const struct rpx_endpoint *ept, const struct rpx_msg *msg)
{
	uint8_t how = msg->len > 0 ? rpx_load8(msg->data) : 0;
	switch (how) {
	case 'u':
		rpx_remote_fault(r, RPX_FAULT_UNDEFINED);
		break;
	case 'a':
		rpx_remote_fault(r, RPX_FAULT_ACCESS);
		break;
	case 'f':
		rpx_remote_fault(r, RPX_FAULT_FATAL);
		break;
	case 'h':
		rpx_remote_hang(r);
		break;
	case 'i':
	case 'd':
	case 'l':
	case 'm':
		rpx_remote_log(r, "corrupts vring 0");
		crash_ring(r, ept, msg->src, how);
		break;
	default:
		rpx_remote_send(r, ept->addr, msg->src, msg->data, msg->len);
	}
}

static const struct rpx_endpoint crash_endpoints[] = {
	{"rpmsg-crash", RPX_ADDR_DYNAMIC, crash_receive},
};

const struct rpx_app rpx_app_crash = {
	.name = "crash",
	.endpoints = crash_endpoints,
	.n_endpoints = 1,
};
