/* SPDX-License-Identifier: BSD-3-Clause */
#include "remote.h"

_Static_assert(offsetof(struct rpx_remote_table, vdev) == 24 && offsetof(struct rpx_remote_table, vring) == 52 &&
	       offsetof(struct rpx_remote_table, trace) == 92 && sizeof(struct rpx_remote_table) == 140,
	       "the table has no holes");
_Static_assert(RPX_REMOTE_KIND != RPX_KIND_DEVICE, "messages are handed out in place");

#define RPX_REMOTE_ORDER rpx_kind_order((enum rpx_kind)RPX_REMOTE_KIND)
#define RPX_REMOTE_ALIGN_MAX 0x10000u

/* Legacy rings are in the byte order of the driver's CPU, which a resource table takes to be the remote's too. */
#define RPX_REMOTE_SWAP false

/* ------------------------------------------------------------------------------------------------- trace ---- */

static void rpx_remote_begin(struct rpx_remote *r, const char *text)
{
	rpx_trace_text(&r->trace, r->app->name);
	rpx_trace_text(&r->trace, ": ");
	rpx_trace_text(&r->trace, text);
}

void rpx_remote_log(struct rpx_remote *r, const char *text)
{
	rpx_remote_begin(r, text);
	rpx_trace_text(&r->trace, "\n");
}

void rpx_remote_log_u32(struct rpx_remote *r, const char *text, uint32_t value)
{
	rpx_remote_begin(r, text);
	rpx_trace_text(&r->trace, " ");
	rpx_trace_u32(&r->trace, value);
	rpx_trace_text(&r->trace, "\n");
}

/* ------------------------------------------------------------------------------------------------- table ---- */

static uint32_t rpx_table_u32(const uint32_t *field)
{
	return RPX_ATOMIC_LOAD(field, __ATOMIC_RELAXED);
}

/* Acquire: with DRIVER_OK come the addresses and the zeroed rings (VIRTIO 3.1.1: DRIVER_OK is last). */
static bool rpx_table_live(const struct rpx_remote *r)
{
	const uint8_t *status = &r->table->vdev.status;
	RPX_INVALIDATE(r->table, sizeof(*r->table));
	return (rpx_load8_acquire(status, RPX_REMOTE_ORDER) &
		(RPX_STATUS_DRIVER_OK | RPX_STATUS_NEEDS_RESET | RPX_STATUS_FAILED)) == RPX_STATUS_DRIVER_OK;
}

static void rpx_table_read(struct rpx_remote *r)
{
	const struct rpx_remote_table *t = r->table;
	r->features = rpx_table_u32(&t->vdev.gfeatures);
	for (uint32_t i = 0; i < 2; i++) {
		r->vring[i].da = rpx_table_u32(&t->vring[i].da);
		r->vring[i].align = rpx_table_u32(&t->vring[i].align);
		r->vring[i].num = rpx_table_u32(&t->vring[i].num);
		r->vring[i].notifyid = rpx_table_u32(&t->vring[i].notifyid);
	}
}

static bool rpx_table_changed(const struct rpx_remote *r)
{
	const struct rpx_remote_table *t = r->table;
	bool same = rpx_table_u32(&t->vdev.gfeatures) == r->features;
	for (uint32_t i = 0; i < 2; i++) {
		same = same && rpx_table_u32(&t->vring[i].da) == r->vring[i].da;
		same = same && rpx_table_u32(&t->vring[i].align) == r->vring[i].align;
		same = same && rpx_table_u32(&t->vring[i].num) == r->vring[i].num;
		same = same && rpx_table_u32(&t->vring[i].notifyid) == r->vring[i].notifyid;
	}
	return !same;
}

/* ------------------------------------------------------------------------------------------------- memory --- */

/* A ring's place: the grant that holds all of it, and the offset there. */
struct rpx_place {
	uint32_t grant;
	uint64_t offset;
	uint32_t bytes;
};

static bool rpx_remote_place(const struct rpx_remote *r, const struct rpx_rsc_vring *v, struct rpx_place *place)
{
	if (v->num == 0 || v->num > RPX_REMOTE_NUM || (v->num & (v->num - 1u)) != 0)
		return false;
	if (v->align < 4 || v->align > RPX_REMOTE_ALIGN_MAX || (v->align & (v->align - 1u)) != 0)
		return false;
	place->bytes = rpx_ring_bytes(v->num, v->align);
	for (uint32_t i = 0; i < r->n_grants; i++) {
		const struct rpx_grant *g = &r->grants[i];
		if (v->da >= g->da && place->bytes <= g->len && v->da - g->da <= g->len - place->bytes) {
			place->grant = i;
			place->offset = v->da - g->da;
			return true;
		}
	}
	return false;
}

static void rpx_remote_region(struct rpx_remote *r, const struct rpx_grant *g, uint64_t from, uint64_t to)
{
	if (from >= to)
		return;
	struct rpx_region *region = &r->regions[r->mem.count++];
	region->base = g->base + from;
	region->addr = g->addr + from;
	region->len = to - from;
	region->perm = RPX_PERM_READ | RPX_PERM_WRITE;
}

/* What descriptors may point at: the grants without the two rings. False: the rings overlap. */
static bool rpx_remote_cut(struct rpx_remote *r, const struct rpx_place *a, const struct rpx_place *b)
{
	if (a->grant == b->grant && b->offset < a->offset) {
		const struct rpx_place *c = a;
		a = b;
		b = c;
	}
	if (a->grant == b->grant && b->offset - a->offset < a->bytes)
		return false;
	r->mem.regions = r->regions;
	r->mem.count = 0;
	for (uint32_t i = 0; i < r->n_grants; i++) {
		const struct rpx_grant *g = &r->grants[i];
		uint64_t from = 0;
		if (a->grant == i) {
			rpx_remote_region(r, g, from, a->offset);
			from = a->offset + a->bytes;
		}
		if (b->grant == i) {
			rpx_remote_region(r, g, from, b->offset);
			from = b->offset + b->bytes;
		}
		rpx_remote_region(r, g, from, g->len);
	}
	return true;
}

static bool rpx_remote_ring(struct rpx_remote *r, struct rpx_dev *q, uint32_t *seen, const struct rpx_rsc_vring *v,
			    const struct rpx_place *place)
{
	struct rpx_ring ring;
	uint8_t *base = r->grants[place->grant].base + place->offset;
	if (rpx_ring_init_legacy(&ring, base, v->num, v->align, RPX_REMOTE_ORDER, RPX_REMOTE_SWAP) != 0)
		return false;
	ring.event_idx = (r->features & RPX_REMOTE_FEATURES & 1u << RPX_F_EVENT_IDX) != 0;
	/* A driver may have filled the used ring itself, to take its first buffers from there (rpmsg-lite does). */
	rpx_dev_init(q, &ring, seen, 0, rpx_ring_used_idx(&ring));
	return true;
}

/* ------------------------------------------------------------------------------------------------- link ----- */

static void rpx_remote_set(struct rpx_remote *r, enum rpx_link link, const char *text)
{
	bool was_up = r->link == RPX_LINK_UP, up = link == RPX_LINK_UP;
	r->link = (uint32_t)link;
	if (r->app->link != NULL && was_up && !up)
		r->app->link(r, false);
	rpx_remote_log(r, text);
	if (r->app->link != NULL && up && !was_up)
		r->app->link(r, true);
}

static void rpx_remote_up(struct rpx_remote *r)
{
	struct rpx_place place[2];
	r->rings = false;
	rpx_table_read(r); /* a reset that comes in between shows in the next check, which compares all of it */
	for (uint32_t i = 0; i < 2; i++) {
		if (!rpx_remote_place(r, &r->vring[i], &place[i])) {
			rpx_remote_set(r, RPX_LINK_BROKEN, i == 0 ? "broken: vring 0 is not in shared memory"
								  : "broken: vring 1 is not in shared memory");
			return;
		}
	}
	if (!rpx_remote_cut(r, &place[0], &place[1])) {
		rpx_remote_set(r, RPX_LINK_BROKEN, "broken: the vrings overlap");
		return;
	}
	if (!rpx_remote_ring(r, &r->tx_q, r->tx_seen, &r->vring[0], &place[0]) ||
	    !rpx_remote_ring(r, &r->rx_q, r->rx_seen, &r->vring[1], &place[1])) {
		rpx_remote_set(r, RPX_LINK_BROKEN, "broken: a vring is not aligned");
		return;
	}
	r->tx.n_spare = 0;
	r->announced = (r->features & RPX_REMOTE_FEATURES & 1u << RPX_RPMSG_F_NS) != 0 ? 0 : r->app->n_endpoints;
	r->rings = true;
	rpx_remote_set(r, RPX_LINK_UP, "up");
}

/*
 * Has the driver started over? It alone writes the table, and initialises the rings: a used.idx that is not the one
 * we left there tells of a reset that was over before anybody looked at the status.
 */
static bool rpx_remote_restarted(const struct rpx_remote *r)
{
	return rpx_table_changed(r) || (r->rings && (rpx_ring_used_idx(&r->tx_q.ring) != r->tx_q.used_pub ||
						     rpx_ring_used_idx(&r->rx_q.ring) != r->rx_q.used_pub));
}

/* Is the link still that which was set up? If not it is down, and the rings are not touched any more. */
static bool rpx_remote_check(struct rpx_remote *r)
{
	if (rpx_table_live(r) && !rpx_remote_restarted(r))
		return true;
	rpx_remote_set(r, RPX_LINK_DOWN, "down: reset by the driver");
	return false;
}

static void rpx_remote_broken(struct rpx_remote *r)
{
	int error = r->rx_q.broken != 0 ? r->rx_q.broken : r->tx_q.broken;
	if (error == 0)
		return;
	rpx_remote_begin(r, r->rx_q.broken != 0 ? "vring 1: " : "vring 0: ");
	rpx_trace_text(&r->trace, rpx_error_text(error));
	rpx_trace_text(&r->trace, " (rule ");
	rpx_trace_text(&r->trace, rpx_error_rule(error));
	rpx_trace_text(&r->trace, ")\n");
	rpx_remote_set(r, RPX_LINK_BROKEN, "broken: waiting for the driver's reset");
}

/* ------------------------------------------------------------------------------------------------- send ----- */

static void rpx_remote_kick(struct rpx_remote *r, uint32_t vring)
{
	rpx_fence_doorbell();
	r->port->kick(r->port->ctx, r->vring[vring].notifyid);
}

/*
 * False: the link is down, for the driver has started over. What was staged is of rings that are gone: published, it
 * would be taken for entries of the new ones.
 */
static bool rpx_remote_flush(struct rpx_remote *r)
{
	if (!rpx_remote_check(r))
		return false;
	if (rpx_tx_publish(&r->tx))
		rpx_remote_kick(r, 0);
	if (!rpx_remote_check(r)) /* a kick may take its time */
		return false;
	if (rpx_rx_publish(&r->rx))
		rpx_remote_kick(r, 1);
	return true;
}

int rpx_remote_claim(struct rpx_remote *r, struct rpx_txbuf *buf)
{
	return r->link == RPX_LINK_UP ? rpx_tx_get(&r->tx, buf) : RPX_REMOTE_DOWN;
}

void rpx_remote_unclaim(struct rpx_remote *r, const struct rpx_txbuf *buf)
{
	if (r->link == RPX_LINK_UP)
		rpx_tx_unget(&r->tx, buf);
}

int rpx_remote_commit(struct rpx_remote *r, const struct rpx_txbuf *buf, uint32_t src, uint32_t dst, uint32_t len)
{
	if (r->link != RPX_LINK_UP)
		return RPX_REMOTE_DOWN;
	if (len > buf->cap) {
		rpx_tx_unget(&r->tx, buf);
		return RPX_REMOTE_SIZE;
	}
	int rc = rpx_tx_put(&r->tx, buf, src, dst, len);
	if (rc != 0)
		return rc;
	r->sent++;
	return RPX_REMOTE_SENT;
}

int rpx_remote_try_send(struct rpx_remote *r, uint32_t src, uint32_t dst, const void *data, uint32_t len)
{
	struct rpx_txbuf buf;
	int rc = rpx_remote_claim(r, &buf);
	if (rc != RPX_TX_BUFFER)
		return rc;
	if (len <= buf.cap)
		RPX_MEMCPY(buf.data, data, len);
	return rpx_remote_commit(r, &buf, src, dst, len);
}

int rpx_remote_send(struct rpx_remote *r, uint32_t src, uint32_t dst, const void *data, uint32_t len)
{
	for (uint32_t waits = 0; waits < RPX_REMOTE_SEND_WAITS; waits++) {
		int rc = rpx_remote_try_send(r, src, dst, data, len);
		if (rc != RPX_REMOTE_NONE)
			return rc;
		if (!rpx_remote_flush(r))
			return RPX_REMOTE_DOWN;
		if (!rpx_tx_unmute(&r->tx))
			r->events |= r->port->wait(r->port->ctx);
		if ((r->events & (RPX_EVENT_DETACH | RPX_EVENT_STOP)) != 0 || !rpx_remote_check(r))
			return RPX_REMOTE_DOWN;
		rpx_tx_mute(&r->tx);
	}
	return RPX_REMOTE_NONE;
}

/* ------------------------------------------------------------------------------------------------- loop ----- */

static void rpx_remote_announce(struct rpx_remote *r)
{
	for (; r->announced < r->app->n_endpoints; r->announced++) {
		const struct rpx_endpoint *ept = &r->app->endpoints[r->announced];
		struct rpx_rpmsg_ns ns;
		if (ept->name == NULL)
			continue;
		rpx_ns_encode(&ns, ept->name, ept->addr, false, RPX_REMOTE_SWAP);
		int rc = rpx_remote_try_send(r, ept->addr, RPX_ADDR_NS, &ns, sizeof(ns));
		if (rc == RPX_REMOTE_SIZE)
			rpx_remote_log(r, "cannot announce: the buffers are too short");
		else if (rc != RPX_REMOTE_SENT)
			return;
	}
}

static void rpx_remote_dispatch(struct rpx_remote *r, const struct rpx_msg *msg)
{
	for (uint32_t i = 0; i < r->app->n_endpoints; i++) {
		const struct rpx_endpoint *ept = &r->app->endpoints[i];
		if (ept->addr == msg->dst) {
			r->received++;
			ept->receive(r, ept, msg);
			return;
		}
	}
	r->dropped++;
}

/* One batch: what one look at avail.idx has shown. */
static void rpx_remote_drain(struct rpx_remote *r)
{
	struct rpx_msg msg;
	do {
		int rc = rpx_rx_next(&r->rx, &msg);
		if (rc <= RPX_RX_EMPTY)
			return;
		if (rc != RPX_RX_MESSAGE) {
			r->dropped++;
			continue;
		}
		rpx_remote_dispatch(r, &msg);
		if (r->link != RPX_LINK_UP || r->fault != 0)
			return;
		rpx_rx_done(&r->rx, msg.token);
	} while (r->rx_q.last_avail != r->rx_q.avail_seen && r->events == 0);
}

/* One round of an open link. False: there is nothing to do until an event comes. */
static bool rpx_remote_pump(struct rpx_remote *r)
{
	rpx_rx_mute(&r->rx);
	rpx_tx_mute(&r->tx);
	rpx_remote_announce(r);
	rpx_remote_drain(r);
	if (r->link != RPX_LINK_UP || r->fault != 0)
		return true;
	bool more = r->app->work != NULL && r->app->work(r);
	rpx_remote_broken(r);
	if (r->link != RPX_LINK_UP || r->fault != 0)
		return true;
	if (!rpx_remote_flush(r))
		return true;
	more = more || r->announced < r->app->n_endpoints;
	if (rpx_rx_pending(&r->rx) || (more && (r->tx.n_spare > 0 || rpx_tx_pending(&r->tx))))
		return true;
	/* Nothing in sight: ask for kicks, and look again before waiting. */
	bool again = rpx_rx_unmute(&r->rx);
	if (more)
		again = rpx_tx_unmute(&r->tx) || again;
	return again;
}

/* One step, whatever the state. False: wait for an event. */
static bool rpx_remote_step(struct rpx_remote *r)
{
	switch (r->link) {
	case RPX_LINK_UP:
		return !rpx_remote_check(r) || rpx_remote_pump(r);
	case RPX_LINK_BROKEN:
	case RPX_LINK_DETACHED:
		if (rpx_table_live(r) && !rpx_remote_restarted(r))
			return false;
		r->link = RPX_LINK_DOWN;
		return true;
	default:
		if (!rpx_table_live(r))
			return false;
		rpx_remote_up(r);
		return true;
	}
}

uint32_t rpx_remote_run(struct rpx_remote *r)
{
	while (r->fault == 0) {
		r->events |= r->port->poll(r->port->ctx);
		if ((r->events & RPX_EVENT_STOP) != 0) {
			rpx_remote_set(r, RPX_LINK_DOWN, "stopped");
			r->port->ack(r->port->ctx, RPX_EVENT_STOP);
			return 0;
		}
		if ((r->events & RPX_EVENT_DETACH) != 0) {
			/* Where the host left DRIVER_OK standing, only a restart of the driver makes it count again. */
			rpx_remote_set(r, rpx_table_live(r) ? RPX_LINK_DETACHED : RPX_LINK_DOWN, "detached");
			r->port->ack(r->port->ctx, RPX_EVENT_DETACH);
		}
		r->events = 0;
		if (!rpx_remote_step(r) && r->events == 0 && r->fault == 0)
			r->events = r->port->wait(r->port->ctx);
	}
	return r->fault;
}

void rpx_remote_fault(struct rpx_remote *r, uint32_t cause)
{
	rpx_remote_log_u32(r, "fault", cause);
	r->fault = cause;
	r->port->fault(r->port->ctx, cause);
}

void rpx_remote_hang(struct rpx_remote *r)
{
	rpx_remote_log(r, "hang");
	r->port->hang(r->port->ctx);
	r->events |= RPX_EVENT_STOP;
}

void rpx_remote_init(struct rpx_remote *r, const struct rpx_app *app, void *state, const struct rpx_port *port,
		     struct rpx_remote_table *table, const struct rpx_grant *grants, uint32_t n_grants, char *trace,
		     uint32_t trace_size)
{
	rpx_zero(r, sizeof(*r));
	rpx_zero(state, app->state_size);
	r->app = app;
	r->state = state;
	r->port = port;
	r->table = table;
	r->n_grants = n_grants < RPX_REMOTE_GRANTS ? n_grants : RPX_REMOTE_GRANTS;
	for (uint32_t i = 0; i < r->n_grants; i++)
		RPX_MEMCPY(&r->grants[i], &grants[i], sizeof(grants[i]));
	rpx_trace_init(&r->trace, trace, trace_size);

	r->tx.dev = &r->tx_q;
	r->tx.mem = &r->mem;
	r->tx.spare = r->spare;
	r->tx.swap = RPX_REMOTE_SWAP;
	r->tx.kind = RPX_REMOTE_KIND;
	r->rx.dev = &r->rx_q;
	r->rx.mem = &r->mem;
	r->rx.scratch = (uint8_t *)r->scratch;
	r->rx.scratch_size = sizeof(r->scratch);
	r->rx.swap = RPX_REMOTE_SWAP;
	r->rx.kind = RPX_REMOTE_KIND;
}
