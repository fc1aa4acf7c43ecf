/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The peer of Linux's samples/rpmsg/rpmsg_client_sample.c, which waits for an answer to each message before it sends
 * the next: "rpmsg-client-sample" answers with the same bytes. "rpmsg-raw" (rpmsg_char) echoes as well.
 */
#include "remote/remote.h"

struct sample {
	uint32_t count; /* messages since the link came up */
};

static void sample_receive(struct rpx_remote *r, const struct rpx_endpoint *ept, const struct rpx_msg *msg)
{
	struct sample *s = (struct sample *)r->state;
	if (s->count++ == 0)
		rpx_remote_log_u32(r, "first message, from", msg->src);
	else if (s->count % 100u == 0)
		rpx_remote_log_u32(r, "messages", s->count);
	rpx_remote_send(r, ept->addr, msg->src, msg->data, msg->len);
}

static void sample_link(struct rpx_remote *r, bool up)
{
	struct sample *s = (struct sample *)r->state;
	if (!up)
		rpx_remote_log_u32(r, "messages in all", s->count);
	s->count = 0;
}

static const struct rpx_endpoint sample_endpoints[] = {
	{"rpmsg-client-sample", RPX_ADDR_DYNAMIC, sample_receive},
	{"rpmsg-raw", RPX_ADDR_DYNAMIC + 1u, sample_receive},
};

const struct rpx_app rpx_app_sample = {
	.name = "sample",
	.endpoints = sample_endpoints,
	.n_endpoints = 2,
	.state_size = sizeof(struct sample),
	.link = sample_link,
};
