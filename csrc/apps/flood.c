/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * "rpmsg-flood": a source and a sink at full speed. A message of 16 bytes that starts with FLOOD_MAGIC is a command,
 * {magic, op, count, size} in native words; every other message is sunk.
 *
 *   FLOOD_SOURCE  send `count` messages of `size` bytes (cut to what a buffer holds) to whoever asked. Byte i of
 *                 message n is (n + i) & 0xff, but for its first word, where there is room: n.
 *   FLOOD_SINK    forget what was counted; `count`, `size` are ignored. No answer.
 *   FLOOD_REPORT  answer {magic, messages, bytes, gaps} of what was sunk since; a gap is a message whose first word
 *                 is not one more than that of the message before it (0 at first).
 */
#include "remote/remote.h"

#define FLOOD_MAGIC 0x46585052u /* "RPXF" where words are little-endian */

enum {
	FLOOD_SOURCE = 1,
	FLOOD_SINK = 2,
	FLOOD_REPORT = 3,
};

struct flood {
	uint32_t left, size, next, dst; /* source */
	uint32_t messages, bytes, gaps, expect; /* sink */
};

static void flood_command(struct rpx_remote *r, const struct rpx_endpoint *ept, uint32_t src, const uint32_t *command)
{
	struct flood *f = (struct flood *)r->state;
	if (command[1] == FLOOD_SOURCE) {
		f->left = command[2];
		f->size = command[3];
		f->next = 0;
		f->dst = src;
		rpx_remote_log_u32(r, "source", f->left);
	} else if (command[1] == FLOOD_SINK) {
		f->messages = f->bytes = f->gaps = f->expect = 0;
	} else if (command[1] == FLOOD_REPORT) {
		const uint32_t report[4] = {FLOOD_MAGIC, f->messages, f->bytes, f->gaps};
		rpx_remote_log_u32(r, "sunk", f->messages);
		rpx_remote_send(r, ept->addr, src, report, sizeof(report));
	}
}

static void flood_receive(struct rpx_remote *r, const struct rpx_endpoint *ept, const struct rpx_msg *msg)
{
	struct flood *f = (struct flood *)r->state;
	uint32_t words[4] = {0};
	rpx_copy_from(words, msg->data, msg->len < sizeof(words) ? msg->len & ~3u : sizeof(words), RPX_REMOTE_KIND);
	if (msg->len == sizeof(words) && words[0] == FLOOD_MAGIC) {
		flood_command(r, ept, msg->src, words);
		return;
	}
	f->messages++;
	f->bytes += msg->len;
	if (msg->len >= 4) {
		f->gaps += words[0] != f->expect;
		f->expect = words[0] + 1u;
	}
}

static bool flood_work(struct rpx_remote *r)
{
	struct flood *f = (struct flood *)r->state;
	for (uint32_t batch = 0; f->left > 0 && batch < RPX_REMOTE_NUM; batch++) {
		struct rpx_txbuf buf;
		if (rpx_remote_claim(r, &buf) != RPX_TX_BUFFER)
			break;
		uint32_t n = f->size < buf.cap ? f->size : buf.cap, i = 0;
		if (n >= 4) {
			*(uint32_t *)(void *)buf.data = f->next;
			i = 4;
		}
		for (; i < n; i++)
			buf.data[i] = (uint8_t)(f->next + i);
		if (rpx_remote_commit(r, &buf, RPX_ADDR_DYNAMIC, f->dst, n) != RPX_REMOTE_SENT)
			break;
		f->next++;
		f->left--;
	}
	return f->left > 0;
}

static void flood_link(struct rpx_remote *r, bool up)
{
	if (!up)
		((struct flood *)r->state)->left = 0;
}

static const struct rpx_endpoint flood_endpoints[] = {
	{"rpmsg-flood", RPX_ADDR_DYNAMIC, flood_receive},
};

const struct rpx_app rpx_app_flood = {
	.name = "flood",
	.endpoints = flood_endpoints,
	.n_endpoints = 1,
	.state_size = sizeof(struct flood),
	.link = flood_link,
	.work = flood_work,
};
