/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The rules of packed rings, one function each, as ring.c has those of split ones. Where a function of packed.h has an
 * answer of its own to what is a place, a mark or a threshold, the one here takes single steps.
 */
#define RPX_ANY_ENDIAN /* run the byte-swapped paths on this machine too */
#include "check.h"
#include "rpx.h"

static bool raised[RPX_N_ERRORS];

/* `call` breaks the driver's or device's rule `name`, and every later call says so until the queue starts again. */
#define BREAKS_DRV(call, name) \
	do { \
		CHECK((call) == RPX_E_##name); \
		raised[RPX_ORD_##name] = true; \
		CHECK(drv_stuck(RPX_E_##name)); \
	} while (0)
#define BREAKS_DEV(call, name) \
	do { \
		CHECK((call) == RPX_E_##name); \
		raised[RPX_ORD_##name] = true; \
		CHECK(dev_stuck(RPX_E_##name)); \
	} while (0)

/* ----------------------------------------------------------------------------------------------- the world ---- */

#define NUM_MAX 16u
#define BUF 64u          /* bytes of a buffer */
#define ADDR 0x10000u    /* of the first one; NUM_MAX follow, and each may be read and written */
#define ADDR_RO 0x80000u /* a region that may only be read */
#define START RPX_PACKED_START
#define WRITE RPX_DESC_F_WRITE
#define NEXT RPX_DESC_F_NEXT
#define INDIRECT RPX_DESC_F_INDIRECT

static struct rpx_packed_ring ring;
static struct rpx_packed drv, dev;
static struct rpx_packed_buf *drv_bufs, *dev_bufs;
static uint8_t *bufs, *readonly;
static struct rpx_region regions[2];
static const struct rpx_mem mem = { regions, 2 };

static void unmake(void)
{
	free(ring.desc);
	free(ring.driver);
	free(ring.device);
	free(drv_bufs);
	free(dev_bufs);
	free(bufs);
	free(readonly);
}

/* A fresh ring with both ends on it, which begin at `start`. */
static void make_at(uint32_t num, bool swap, bool event_idx, bool indirect, uint16_t start)
{
	unmake();
	drv_bufs = xalloc(num * sizeof *drv_bufs);
	dev_bufs = xalloc(num * sizeof *dev_bufs);
	bufs = xalloc((size_t)NUM_MAX * BUF);
	readonly = xalloc(BUF);
	regions[0] = (struct rpx_region){ bufs, ADDR, NUM_MAX * BUF, RPX_PERM_READ | RPX_PERM_WRITE };
	regions[1] = (struct rpx_region){ readonly, ADDR_RO, BUF, RPX_PERM_READ };
	if (rpx_packed_ring_init(&ring, xalloc(16u * num), xalloc(4), xalloc(4), num, RPX_ORDER_SMP, swap) != 0)
		abort();
	ring.event_idx = event_idx;
	ring.indirect = indirect;
	for (uint32_t slot = 0; slot < num; slot++) /* as the round before has left them: used */
		rpx_put16(&ring.desc[slot].flags, (slot < (start & 0x7fffu)) == (start >> 15) ? 0x8080u : 0, swap);
	rpx_packed_init(&drv, &ring, drv_bufs, false, start);
	rpx_packed_init(&dev, &ring, dev_bufs, true, start);
}

static void make(uint32_t num)
{
	make_at(num, false, false, true, START);
}

static uint64_t addr_of(uint32_t i)
{
	return ADDR + (uint64_t)i * BUF;
}

/* One step on, and the marks of a place, in the words of 2.8.1. */
static uint16_t step(uint16_t at)
{
	bool wrap = at >= 0x8000u;
	uint32_t slot = at & 0x7fffu;
	if (++slot == ring.num) {
		slot = 0;
		wrap = !wrap;
	}
	return (uint16_t)(slot + (wrap ? 0x8000u : 0));
}

static uint16_t steps(uint16_t at, uint32_t n)
{
	while (n-- > 0)
		at = step(at);
	return at;
}

static uint32_t marks(uint16_t at, bool used)
{
	bool wrap = at >= 0x8000u;
	return (wrap ? 1u << 7 : 0) + ((used ? wrap : !wrap) ? 1u << 15 : 0);
}

static struct rpx_packed_desc *desc_at(uint16_t at)
{
	return &ring.desc[at & 0x7fffu];
}

static uint32_t flags_at(uint16_t at)
{
	return rpx_get16(&desc_at(at)->flags, ring.swap);
}

/* What the peer's side of shared memory is made to say. */
static void put_desc(struct rpx_packed_desc *d, uint64_t addr, uint32_t len, uint32_t id, uint32_t flags)
{
	rpx_put64(&d->addr, addr, ring.swap);
	rpx_put32(&d->len, len, ring.swap);
	rpx_put16(&d->id, (uint16_t)id, ring.swap);
	rpx_put16(&d->flags, (uint16_t)flags, ring.swap);
}

static void set_avail(uint16_t at, uint64_t addr, uint32_t len, uint32_t id, uint32_t flags)
{
	put_desc(desc_at(at), addr, len, id, flags | marks(at, false));
}

static void set_used(uint16_t at, uint32_t id, uint32_t len)
{
	put_desc(desc_at(at), 0, len, id, (len != 0 ? WRITE : 0) | marks(at, true));
}

static void set_event(struct rpx_w32 *event, uint16_t at, uint16_t flags)
{
	rpx_put32(event, (uint32_t)flags << 16 | at, ring.swap);
}

static struct rpx_packed_desc *table(void)
{
	return (struct rpx_packed_desc *)(void *)(bufs + 8 * BUF);
}

/* One buffer, as the driver's list of one. */
static int add1(uint64_t addr, uint32_t len, bool write, uint32_t cookie)
{
	struct rpx_sg sg = { addr, len };
	return rpx_packed_add(&drv, &sg, !write, write, cookie);
}

/* The device: the next buffer, walked to its end; its elements, or the rule that was broken. */
static int pop(struct rpx_packed_chain *c)
{
	struct rpx_packed_chain walk;
	struct rpx_seg seg;
	int rc = rpx_packed_pop(&dev, c), n = 0;
	if (rc != 1)
		return rc;
	walk = *c;
	while ((rc = rpx_packed_next(&walk, &dev, &mem, &seg)) == 1) {
		memset(seg.ptr, n, seg.write ? seg.len : 0);
		n++;
	}
	return rc < 0 ? rc : n;
}

static int take(void)
{
	struct rpx_packed_chain c;
	return pop(&c);
}

static bool drv_stuck(int e)
{
	struct rpx_used used;
	struct rpx_sg sg = { ADDR, 4 };
	uint16_t id;
	uint32_t len;
	return rpx_packed_broken(&drv) == e && rpx_packed_look(&drv) == e && rpx_packed_used(&drv, &id, &len) == e &&
	       rpx_packed_get(&drv, &used) == e && rpx_packed_post(&drv, 0, ADDR, 4, false) == e &&
	       rpx_packed_add(&drv, &sg, 1, 0, 0) == e &&
	       rpx_packed_add_indirect(&drv, table(), addr_of(8), &sg, 1, 0, 0) == e && !rpx_packed_publish(&drv) &&
	       (rpx_packed_init(&drv, &ring, drv_bufs, false, START), drv.broken == 0) && add1(ADDR, 4, false, 0) == 0;
}

static bool dev_stuck(int e)
{
	struct rpx_packed_chain c = { .left = 1 };
	struct rpx_seg seg;
	if (rpx_packed_broken(&dev) != e || rpx_packed_look(&dev) != e || rpx_packed_pop(&dev, &c) != e ||
	    rpx_packed_next(&c, &dev, &mem, &seg) != e || rpx_packed_push(&dev, 0, 0) != e || rpx_packed_publish(&dev))
		return false;
	rpx_packed_ring_zero(&ring);
	rpx_packed_init(&dev, &ring, dev_bufs, true, START);
	return dev.broken == 0 && rpx_packed_pop(&dev, &c) == 0;
}

/* -------------------------------------------------------------------------------------- layout and arithmetic ---- */

static void errors_have_rules_and_texts(void)
{
#define RPX_X(name, rule, text) \
	CHECK(strcmp(rpx_packed_error_rule(RPX_E_##name), rule) == 0); \
	CHECK(strcmp(rpx_packed_error_text(RPX_E_##name), text) == 0);
	RPX_PACKED_ERRORS(RPX_X)
#undef RPX_X
	CHECK(strcmp(rpx_packed_error_rule(1), "") == 0 && strcmp(rpx_packed_error_text(-1000), "unknown error") == 0);
	CHECK(strcmp(rpx_packed_error_rule(RPX_E_USED_IDX), "") == 0); /* there is no such thing here */
}

static void ring_init_refuses(void)
{
	static _Alignas(16) uint8_t b[256];
	struct rpx_packed_ring r;
	static const uint32_t bad[] = { 0, 32769, 65535, 65536, 0x80000000u, UINT32_MAX };
	static const uint32_t good[] = { 1, 2, 3, 5, 48, 32767, 32768 };
	for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
		CHECK(rpx_packed_ring_init(&r, b, b + 64, b + 68, bad[i], RPX_ORDER_SMP, false) == RPX_E_INVAL);
	for (size_t i = 0; i < sizeof good / sizeof *good; i++)
		CHECK(rpx_packed_ring_init(&r, b, b + 64, b + 68, good[i], RPX_ORDER_SMP, false) == 0 && r.num == good[i]);
	CHECK(rpx_packed_ring_init(&r, b + 8, b + 64, b + 68, 2, RPX_ORDER_SMP, false) == RPX_E_INVAL); /* 2.8.11-1 */
	CHECK(rpx_packed_ring_init(&r, b, b + 66, b + 68, 2, RPX_ORDER_SMP, false) == RPX_E_INVAL);
	CHECK(rpx_packed_ring_init(&r, b, b + 64, b + 70, 2, RPX_ORDER_SMP, false) == RPX_E_INVAL);
	memset(b, 0xff, sizeof b);
	CHECK(rpx_packed_ring_init(&r, b + 16, b + 64, b + 72, 2, RPX_ORDER_SMP, false) == 0);
	rpx_packed_ring_zero(&r);
	for (uint32_t i = 0; i < sizeof b; i++)
		CHECK(b[i] == ((i >= 16 && i < 48) || (i >= 64 && i < 68) || (i >= 72 && i < 76) ? 0 : 0xff));
}

/* struct pvirtq_desc and struct pvirtq_event_suppress, byte by byte (2.8.13, 2.8.14). */
static void fields_lie_where_they_should(void)
{
	make_at(2, RPX_BIG_ENDIAN != 0, true, false, START);
	const uint8_t *d = (const uint8_t *)ring.desc, *e = (const uint8_t *)ring.device;
	static const uint8_t want[16] = { 1, 2, 1, 0, 0, 0, 0, 0, 4, 3, 2, 1, 1, 0, 0x82, 0 };
	uint8_t got[16];
	CHECK(rpx_packed_post(&drv, 1, 0x10201, 0x01020304, true) == 0 && rpx_packed_publish(&drv));
	memcpy(got, d, sizeof got);
	CHECK(memcmp(got, want, sizeof got) == 0);
	CHECK(rpx_packed_post(&drv, 0, ADDR, 4, false) == 0);
	rpx_packed_publish(&drv);
	CHECK(rpx_packed_unmute(&dev) && e[0] == 0 && e[1] == 0x80 && e[2] == 2 && e[3] == 0);
	rpx_packed_mute(&dev);
	CHECK(e[2] == 1 && e[3] == 0);
}

static void places_are_single_steps(void)
{
	for (uint32_t num = 1; num <= 9; num++) {
		make(num);
		uint16_t from = START;
		for (uint32_t i = 0; i < 2 * num; i++, from = step(from)) {
			uint16_t to = from;
			for (uint32_t n = 0; n < 2 * num; n++, to = step(to)) {
				CHECK(rpx_packed_distance(&ring, from, to) == n);
				CHECK(n > num || rpx_packed_after(&ring, from, n) == to);
			}
			CHECK(to == from);
			CHECK(rpx_packed_marks(from, false) == marks(from, false));
			CHECK(rpx_packed_marks(from, true) == marks(from, true));
			for (uint32_t n = 0; n <= num; n++) {
				struct rpx_packed_cursor c = { from, marks(from, false) };
				rpx_packed_jump(&c, &ring, n);
				CHECK(c.at == steps(from, n) && c.marks == marks(c.at, false));
				rpx_packed_step(&c, &ring);
				CHECK(c.at == steps(from, n + 1) && c.marks == marks(c.at, false));
			}
		}
	}
	make(32768);
	static const uint16_t froms[] = { 0, 1, 32767, 0x8000, 0x8001, 0xffff };
	for (size_t k = 0; k < sizeof froms / sizeof *froms; k++) {
		uint16_t to = froms[k];
		for (uint32_t n = 0; n < 65536; n++, to = step(to)) {
			CHECK(rpx_packed_distance(&ring, froms[k], to) == n);
			CHECK(n > 32768 || rpx_packed_after(&ring, froms[k], n) == to);
		}
	}
}

/* Does `end`, which begins at `old` and has `len` to publish, notify where the other one says so? */
static bool notifies(struct rpx_packed *end, uint16_t event, uint16_t flags)
{
	set_event(end->device ? ring.driver : ring.device, event, flags);
	struct rpx_packed once = *end; /* the same decision, again and again */
	return rpx_packed_publish(&once);
}

/* Both roles, all places, batches of all lengths, all thresholds, the places that there are not among them. */
static void thresholds_are_their_definition(void)
{
	for (uint32_t num = 1; num <= 5; num++) {
		for (int f = 0; f < 4; f++) {
			make(num);
			uint16_t old = START;
			for (uint32_t i = 0; i < 2 * num; i++, old = step(old)) {
				for (uint32_t len = 1; len <= num; len++) {
					make_at(num, (f & 1) != 0, true, false, old);
					struct rpx_packed *end = (f & 2) != 0 ? &dev : &drv;
					for (uint32_t k = 0; k < len; k++)
						CHECK(add1(ADDR, 4, false, k) == 0);
					if (end == &dev) {
						rpx_packed_publish(&drv);
						for (uint16_t k = 0; k < len; k++)
							CHECK(take() == 1 && rpx_packed_push(&dev, k, 0) == 0);
					}
					uint16_t event = old;
					for (uint32_t n = 0; n < 2 * num; n++, event = step(event))
						CHECK(notifies(end, event, RPX_PACKED_EVENT_DESC) == (n < len));
					for (event = (uint16_t)num; event < num + 40u; event++) /* nonsense, but nothing breaks */
						notifies(end, event, RPX_PACKED_EVENT_DESC);
					notifies(end, 0x7fff, RPX_PACKED_EVENT_DESC);
					notifies(end, 0xffff, RPX_PACKED_EVENT_DESC);
					CHECK(notifies(end, step(steps(old, len)), RPX_PACKED_EVENT_ENABLE));
					CHECK(!notifies(end, old, RPX_PACKED_EVENT_DISABLE));
					CHECK(notifies(end, old, 3)); /* reserved: rather one too many */
					CHECK(!notifies(end, old, 0x8000u | RPX_PACKED_EVENT_DISABLE)); /* two bits count */
					end->ring.event_idx = false; /* 2.8.10: DESC is for EVENT_IDX only */
					CHECK(notifies(end, steps(old, len), RPX_PACKED_EVENT_DESC));
				}
			}
		}
	}
}

/* ------------------------------------------------------------------------------------------- the round trip ---- */

static void round_trip(uint32_t num, bool swap, bool event_idx, uint16_t start, uint32_t count)
{
	make_at(num, swap, event_idx, true, start);
	uint16_t at = start;
	for (uint32_t i = 0; i < count; i++, at = step(at)) {
		struct rpx_used used;
		struct rpx_packed_chain c;
		struct rpx_seg seg;
		bool write = (i & 1) != 0;
		CHECK(add1(addr_of(i % NUM_MAX), 8, write, i) == 0);
		CHECK(rpx_packed_pop(&dev, &c) == 0 && !rpx_packed_pending(&dev)); /* staged is not published */
		rpx_packed_publish(&drv);
		CHECK(flags_at(at) == (marks(at, false) | (write ? WRITE : 0)) && rpx_packed_pending(&dev));
		CHECK(rpx_packed_pop(&dev, &c) == 1 && rpx_packed_next(&c, &dev, &mem, &seg) == 1);
		CHECK(seg.ptr == bufs + i % NUM_MAX * BUF && seg.len == 8 && seg.write == write);
		CHECK(rpx_packed_next(&c, &dev, &mem, &seg) == 0 && rpx_packed_pop(&dev, &c) == 0);
		CHECK(rpx_packed_push(&dev, c.id, write ? i & 7 : 0) == 0);
		CHECK(rpx_packed_get(&drv, &used) == 0);
		rpx_packed_publish(&dev);
		CHECK(flags_at(at) == (marks(at, true) | (write && (i & 7) != 0 ? WRITE : 0)));
		CHECK(rpx_packed_get(&drv, &used) == 1 && used.cookie == i && used.len == (write ? i & 7 : 0));
		CHECK(rpx_packed_get(&drv, &used) == 0 && !rpx_packed_pending(&drv));
	}
	CHECK(drv.num_free == num && drv.taken == count && dev.taken == count && drv.given == count && dev.given == count);
}

static void wrap_counters_wrap(void)
{
	static const uint32_t nums[] = { 1, 2, 3, 5, 7, 8, 16 };
	for (size_t k = 0; k < sizeof nums / sizeof *nums; k++) {
		for (int f = 0; f < 4; f++) {
			round_trip(nums[k], (f & 1) != 0, (f & 2) != 0, START, 5 * nums[k] + 3);
			round_trip(nums[k], (f & 1) != 0, (f & 2) != 0, 0, 5 * nums[k] + 3);
			round_trip(nums[k], (f & 1) != 0, (f & 2) != 0, (uint16_t)(nums[k] - 1), 5 * nums[k] + 3);
			round_trip(nums[k], (f & 1) != 0, (f & 2) != 0, (uint16_t)(START + nums[k] - 1), 5 * nums[k] + 3);
		}
	}
	round_trip(3, false, false, START, 70000);
}

/*
 * A full queue in flight, completed in another order: used descriptors stand in the order of completion (2.8.12-2),
 * and the first of a batch is marked last (2.8.9-F1).
 */
static void completions_in_any_order(void)
{
	make_at(5, false, true, true, 3);
	uint16_t at = 3;
	for (uint32_t round = 0; round < 24; round++) {
		struct rpx_used used;
		struct rpx_packed_chain c[5];
		for (uint32_t i = 0; i < 5; i++)
			CHECK(add1(addr_of(i), 8, false, i) == 0);
		for (uint32_t i = 0; i < 5; i++)
			CHECK(flags_at(steps(at, i)) == (i == 0 ? flags_at(at) : marks(steps(at, i), false)));
		CHECK(take() == 0);
		rpx_packed_publish(&drv);
		for (uint32_t i = 0; i < 5; i++)
			CHECK(pop(&c[i]) == 1);
		uint32_t by = 1 + round % 4, from = round / 4;
		for (uint32_t i = 0; i < 5; i++)
			CHECK(rpx_packed_push(&dev, c[(from + i * by) % 5].id, 0) == 0);
		for (uint32_t i = 0; i < 5; i++)
			CHECK(flags_at(steps(at, i)) == marks(steps(at, i), i > 0));
		CHECK(rpx_packed_get(&drv, &used) == 0);
		rpx_packed_publish(&dev);
		for (uint32_t i = 0; i < 5; i++) {
			CHECK(flags_at(steps(at, i)) == marks(steps(at, i), true));
			CHECK(rpx_get16(&desc_at(steps(at, i))->id, false) == c[(from + i * by) % 5].id);
			CHECK(rpx_packed_get(&drv, &used) == 1 && used.cookie == (from + i * by) % 5);
		}
		CHECK(rpx_packed_get(&drv, &used) == 0);
		at = steps(at, 5);
	}
}

static void largest_queue(void)
{
	make(32768);
	for (uint32_t round = 0; round < 3; round++) {
		struct rpx_used used;
		struct rpx_packed_chain c;
		for (uint32_t i = 0; i < 32768; i++)
			CHECK(add1(ADDR, 4, false, i) == 0);
		CHECK(add1(ADDR, 4, false, 0) == RPX_E_FULL);
		CHECK(rpx_packed_publish(&drv) && rpx_packed_ahead(&dev) == 32768);
		for (uint32_t i = 0; i < 32768; i++)
			CHECK(pop(&c) == 1 && rpx_packed_push(&dev, c.id, 0) == 0);
		CHECK(rpx_packed_pop(&dev, &c) == 0 && rpx_packed_publish(&dev) && rpx_packed_ahead(&drv) == 32768);
		for (uint32_t i = 0; i < 32768; i++)
			CHECK(rpx_packed_get(&drv, &used) == 1 && used.cookie == i);
		CHECK(drv.num_free == 32768);
		CHECK(add1(ADDR, 4, false, 7) == 0 && rpx_packed_publish(&drv) && pop(&c) == 1); /* out of step with the slots */
		CHECK(rpx_packed_push(&dev, c.id, 0) == 0 && rpx_packed_publish(&dev) && rpx_packed_get(&drv, &used) == 1);
	}
}

/* Lists direct and indirect, in all cuts: what the device sees of them. */
static void lists_are_walked(void)
{
	make(5);
	struct rpx_sg sg[4] = { { addr_of(0), 10 }, { addr_of(1), 20 }, { addr_of(2), 30 }, { addr_of(3), 40 } };
	uint16_t at = START;
	for (uint32_t round = 0; round < 30; round++) {
		bool indirect = round % 2 != 0;
		uint32_t out = round / 2 % 5, length = indirect ? 1 : 4;
		struct rpx_packed_chain c;
		struct rpx_seg seg;
		struct rpx_used used;
		if (indirect)
			CHECK(rpx_packed_add_indirect(&drv, table(), addr_of(8), sg, out, 4 - out, round) == 0);
		else
			CHECK(rpx_packed_add(&drv, sg, out, 4 - out, round) == 0);
		CHECK(drv.num_free == 5 - length && rpx_packed_pop(&dev, &c) == 0);
		for (uint32_t i = 0; i < 4; i++) {
			uint32_t write = i >= out ? WRITE : 0;
			if (indirect) /* 2.8.19-2: no flag but WRITE */
				CHECK(rpx_get16(&table()[i].flags, false) == write);
			else if (i > 0) /* the first waits, so that nothing of the list is exposed (2.8.17-6) */
				CHECK(flags_at(steps(at, i)) == (marks(steps(at, i), false) | write | (i < 3 ? NEXT : 0)));
		}
		rpx_packed_publish(&drv);
		CHECK((flags_at(at) & (NEXT | INDIRECT)) == (indirect ? INDIRECT : NEXT));
		CHECK(rpx_packed_pop(&dev, &c) == 1);
		for (uint32_t i = 0; i < 4; i++) {
			CHECK(rpx_packed_next(&c, &dev, &mem, &seg) == 1);
			CHECK(seg.ptr == bufs + i * BUF && seg.len == 10 * (i + 1) && seg.write == (i >= out));
		}
		CHECK(rpx_packed_next(&c, &dev, &mem, &seg) == 0 && rpx_packed_next(&c, &dev, &mem, &seg) == 0);
		CHECK(rpx_packed_push(&dev, c.id, out < 4 ? 40 : 0) == 0);
		rpx_packed_publish(&dev);
		CHECK((flags_at(at) & 0x8080u) == marks(at, true)); /* one for all of them, in the first one's place (2.8.6-F1) */
		CHECK(length == 1 || (flags_at(step(at)) & 0x8080u) == marks(step(at), false));
		CHECK(rpx_packed_get(&drv, &used) == 1 && used.cookie == round && used.len == (out < 4 ? 40 : 0));
		CHECK(drv.num_free == 5 && rpx_packed_get(&drv, &used) == 0);
		at = steps(at, length);
		CHECK(drv.take.at == at && dev.take.at == at && drv.give.at == at && dev.give.at == at);
	}
	/* 2.8.7: WRITE on what points at a table means nothing, nor do the table's ids and its flags but WRITE. */
	make(4);
	set_avail(START, addr_of(8), 32, 2, INDIRECT | WRITE);
	put_desc(&table()[0], addr_of(1), 4, 99, NEXT | INDIRECT | 0x8080u);
	put_desc(&table()[1], addr_of(2), 4, 98, WRITE | NEXT);
	struct rpx_packed_chain c;
	CHECK(pop(&c) == 2 && c.id == 2);
	/* The id is the last descriptor's; those before it mean nothing (2.8.6-F1). */
	make(4);
	set_avail(START, ADDR, 4, 0xffff, NEXT);
	set_avail(step(START), ADDR, 4, 3, 0);
	CHECK(pop(&c) == 2 && c.id == 3);
}

/* ---------------------------------------------------------------------------------------- both ends at random ---- */

static uint32_t random_next(uint32_t *s)
{
	*s ^= *s << 13;
	*s ^= *s >> 17;
	*s ^= *s << 5;
	return *s;
}

/* All counted in descriptors since the start. */
static struct counts {
	uint32_t drv_staged, drv_pub, drv_taken, dev_taken, dev_staged, dev_pub;
} at;

static struct memory {
	uint8_t desc[NUM_MAX * 16], driver[4], device[4];
} then, now;

static void look_around(struct memory *m)
{
	memcpy(m->desc, ring.desc, 16u * ring.num);
	memcpy(m->driver, ring.driver, 4);
	memcpy(m->device, ring.device, 4);
}

/*
 * Since `then`, has only memory changed that belongs to that end? A driver's descriptors are those that it has seen used
 * (2.8.16-1) and has not made available since (2.8.16-2), a device's those that it has taken and not marked (2.8.15-4).
 */
static bool kept_to_its_own(bool device, bool mutes, const struct counts *before)
{
	uint32_t from = device ? before->dev_pub : before->drv_pub;
	uint32_t to = device ? before->dev_taken : before->drv_taken + ring.num;
	look_around(&now);
	for (uint32_t slot = 0; slot < ring.num; slot++) {
		bool own = false;
		for (uint32_t n = from; n < to; n++)
			own = own || n % ring.num == slot;
		if (!own && memcmp(&now.desc[16 * slot], &then.desc[16 * slot], 16) != 0)
			return false;
	}
	return ((!device && mutes) || memcmp(then.driver, now.driver, 4) == 0) &&
	       ((device && mutes) || memcmp(then.device, now.device, 4) == 0);
}

/* One list in flight, as the test knows it; `published` ones wait for the device in order. */
struct flight {
	uint32_t out, in, length, bytes, written;
	bool busy;
};

static void ends_at_random(uint32_t num, bool swap, bool event_idx, uint32_t seed)
{
	struct flight flights[NUM_MAX] = { 0 };
	uint32_t order[NUM_MAX], first = 0, n_staged = 0, n_published = 0; /* cookies, a queue */
	uint16_t held[NUM_MAX];
	uint32_t cookies[NUM_MAX], n_held = 0;
	bool asleep[2] = { false, false }; /* driver, device */
	make_at(num, swap, event_idx, true, START);
	memset(&at, 0, sizeof at);
	for (uint32_t i = 0; i < 4000; i++) {
		struct counts before = at;
		uint32_t op = random_next(&seed) % 8;
		bool device = op >= 4, mutes = op % 4 == 3;
		look_around(&then);
		if (asleep[device])
			continue;
		if (op == 0) { /* the driver adds */
			struct rpx_sg sg[NUM_MAX];
			uint32_t cookie = 0, n = 1 + random_next(&seed) % num, out = random_next(&seed) % (n + 1);
			while (cookie < NUM_MAX && flights[cookie].busy)
				cookie++;
			bool indirect = random_next(&seed) % 3 == 0 && n <= BUF / 16 && cookie < 8;
			struct flight f = { .out = out, .in = n - out, .length = indirect ? 1 : n, .busy = true };
			for (uint32_t k = 0; k < n; k++) {
				sg[k] = (struct rpx_sg){ addr_of(0), 1 + random_next(&seed) % BUF };
				f.bytes += k >= out ? sg[k].len : 0;
			}
			CHECK(drv.num_free == num - (at.drv_staged - at.drv_taken));
			int rc = indirect ? rpx_packed_add_indirect(&drv, table() + 4 * cookie, addr_of(8 + cookie), sg, out,
								    n - out, cookie)
					  : rpx_packed_add(&drv, sg, out, n - out, cookie);
			CHECK(rc == (f.length > num - (at.drv_staged - at.drv_taken) ? RPX_E_FULL : 0));
			if (rc == 0) {
				flights[cookie] = f;
				order[(first + n_published + n_staged++) % NUM_MAX] = cookie;
				at.drv_staged += f.length;
			}
		} else if (op == 1 || op == 5) { /* an end publishes */
			bool news = device ? at.dev_staged != at.dev_pub : at.drv_staged != at.drv_pub;
			bool kick = rpx_packed_publish(device ? &dev : &drv);
			CHECK(!kick || news);
			CHECK(kick || !news || !asleep[!device]); /* who sleeps is told */
			asleep[!device] = asleep[!device] && !kick;
			at.drv_pub = device ? at.drv_pub : at.drv_staged;
			at.dev_pub = device ? at.dev_staged : at.dev_pub;
			n_published += device ? 0 : n_staged;
			n_staged = device ? n_staged : 0;
		} else if (op == 2) {
			struct rpx_used used;
			int rc = rpx_packed_get(&drv, &used);
			CHECK(rc == (at.drv_taken != at.dev_pub));
			if (rc == 1) {
				struct flight *f = &flights[used.cookie];
				CHECK(f->busy && used.len == f->written);
				f->busy = false;
				at.drv_taken += f->length;
			}
		} else if (op == 4) {
			struct rpx_packed_chain c;
			int rc = pop(&c);
			CHECK((rc == 0) == (n_published == 0) && rc >= 0);
			if (rc > 0) {
				uint32_t cookie = order[first++ % NUM_MAX];
				CHECK((uint32_t)rc == flights[cookie].out + flights[cookie].in);
				n_published--;
				held[n_held] = c.id;
				cookies[n_held++] = cookie;
				at.dev_taken += flights[cookie].length;
			}
		} else if (op == 6 && n_held > 0) {
			uint32_t k = random_next(&seed) % n_held;
			struct flight *f = &flights[cookies[k]];
			f->written = random_next(&seed) % (f->bytes + 1);
			CHECK(rpx_packed_push(&dev, held[k], f->written) == 0);
			at.dev_staged += f->length;
			held[k] = held[--n_held];
			cookies[k] = cookies[n_held];
		} else if (mutes) {
			struct rpx_packed *q = device ? &dev : &drv;
			bool more = device ? at.dev_taken != at.drv_pub : at.drv_taken != at.dev_pub;
			if (random_next(&seed) % 2 != 0)
				rpx_packed_mute(q);
			CHECK(rpx_packed_unmute(q) == more);
			/* It may sleep where the other one has work to do. */
			bool idle = device ? at.dev_taken == at.dev_pub : n_staged == 0 && at.drv_taken != at.drv_pub;
			asleep[device] = idle && !more && !asleep[!device];
		}
		CHECK(kept_to_its_own(device, mutes, &before));
		CHECK(drv.broken == 0 && dev.broken == 0);
	}
	CHECK(at.drv_taken > 3 * num);
}

static void neither_end_touches_what_it_made_over(void)
{
	for (uint32_t num = 1; num <= 9; num++)
		for (uint32_t f = 0; f < 4; f++)
			ends_at_random(num, (f & 1) != 0, (f & 2) != 0, 12345 + 10 * num + f);
	ends_at_random(NUM_MAX, false, true, 999);
}

/* Singles and lists, given back out of order: every id is free again, and none twice. */
static void free_list(void)
{
	make(8);
	struct rpx_sg sg[3] = { { ADDR, 4 }, { ADDR + 4, 4 }, { ADDR + 8, 4 } };
	for (uint32_t round = 0; round < 50; round++) {
		struct rpx_used used;
		struct rpx_packed_chain c[4];
		uint32_t got = 0;
		CHECK(rpx_packed_add(&drv, sg, 2, 1, 0) == 0 && add1(ADDR, 4, false, 1) == 0);
		CHECK(rpx_packed_add(&drv, sg, 0, 3, 2) == 0);
		CHECK(rpx_packed_add(&drv, sg, 2, 0, 3) == RPX_E_FULL && drv.broken == 0); /* 2.8.17-5 */
		CHECK(add1(ADDR, 4, false, 3) == 0 && drv.num_free == 0);
		CHECK(add1(ADDR, 4, false, 4) == RPX_E_FULL);
		CHECK(rpx_packed_add_indirect(&drv, table(), addr_of(8), sg, 1, 1, 4) == RPX_E_FULL);
		rpx_packed_publish(&drv);
		for (uint32_t i = 0; i < 4; i++)
			CHECK(pop(&c[i]) == (i % 2 == 0 ? 3 : 1));
		for (uint32_t i = 0; i < 4; i++)
			CHECK(rpx_packed_push(&dev, c[(i * 3 + round) & 3].id, 0) == 0);
		rpx_packed_publish(&dev);
		while (rpx_packed_get(&drv, &used) == 1)
			got |= 1u << used.cookie;
		CHECK(got == 0xf && drv.num_free == 8 && drv.broken == 0);
		bool is_free[8] = { false };
		uint16_t id = drv.free_head;
		for (uint32_t i = 0; i < 8; i++, id = drv_bufs[id].next) {
			CHECK(id < 8 && !is_free[id]);
			is_free[id] = true;
		}
	}
}

/* ------------------------------------------------------------------------------------- the caller's mistakes ---- */

static void driver_refuses_bad_lists(void)
{
	make(4);
	struct rpx_sg sg[5] = { { ADDR, 4 }, { ADDR, 4 }, { ADDR, 4 }, { ADDR, 4 }, { ADDR, 4 } };
	CHECK(rpx_packed_add(&drv, sg, 0, 0, 0) == RPX_E_INVAL && rpx_packed_add(&drv, sg, 3, 2, 0) == RPX_E_INVAL);
	CHECK(rpx_packed_add(&drv, sg, UINT32_MAX, 2, 0) == RPX_E_INVAL); /* the sum wraps to 1 */
	CHECK(rpx_packed_add(&drv, sg, 2, UINT32_MAX, 0) == RPX_E_INVAL);
	CHECK(rpx_packed_add_indirect(&drv, table(), addr_of(8), sg, 3, 2, 0) == RPX_E_INVAL);
	CHECK(rpx_packed_add_indirect(&drv, table(), addr_of(8), sg, 0, 0, 0) == RPX_E_INVAL);
	CHECK(rpx_packed_add_indirect(&drv, table(), addr_of(8), sg, UINT32_MAX, 2, 0) == RPX_E_INVAL);
	sg[1].len = 0;
	CHECK(rpx_packed_add(&drv, sg, 2, 0, 0) == RPX_E_INVAL);
	CHECK(rpx_packed_add_indirect(&drv, table(), addr_of(8), sg, 1, 1, 0) == RPX_E_INVAL);
	sg[1].len = 4;
	drv.ring.indirect = false; /* 2.8.19-1 */
	CHECK(rpx_packed_add_indirect(&drv, table(), addr_of(8), sg, 1, 1, 0) == RPX_E_INVAL);
	CHECK(drv.broken == 0 && drv.num_free == 4 && drv.give.at == START && !rpx_packed_publish(&drv));
	raised[RPX_ORD_INVAL] = raised[RPX_ORD_FULL] = true;
}

static void numbered_buffers(void)
{
	uint16_t id = 9;
	uint32_t len = 9;
	make(3);
	CHECK(rpx_packed_post(&drv, 3, ADDR, 4, true) == RPX_E_INVAL);
	CHECK(rpx_packed_post(&drv, 0xffff, ADDR, 4, true) == RPX_E_INVAL);
	CHECK(rpx_packed_post(&drv, 2, ADDR, 0, true) == RPX_E_INVAL && drv.give.at == START);
	CHECK(rpx_packed_post(&drv, 2, ADDR, 4, true) == 0 && rpx_packed_post(&drv, 2, ADDR, 4, true) == RPX_E_INVAL);
	CHECK(rpx_packed_publish(&drv) && rpx_packed_used(&drv, &id, &len) == 0 && id == 9 && len == 9);
	CHECK(rpx_packed_post(&drv, 2, ADDR, 4, true) == RPX_E_INVAL); /* it is in flight */
	set_used(START, 2, 3);
	CHECK(rpx_packed_peek_used(&drv, &id, &len) == 1 && id == 2 && len == 3 && drv.take.at == START);
	CHECK(rpx_packed_used(&drv, &id, &len) == 1 && id == 2 && len == 3 && drv.take.at == step(START));
	CHECK(rpx_packed_post(&drv, 2, ADDR, 7, true) == 0 && drv.broken == 0);
}

static void push_refuses_what_was_not_popped(void)
{
	make(3);
	CHECK(rpx_packed_push(&dev, 0, 0) == RPX_E_INVAL && rpx_packed_push(&dev, 3, 0) == RPX_E_INVAL &&
	      rpx_packed_push(&dev, 0xffff, 0) == RPX_E_INVAL);
	CHECK(add1(ADDR, 4, false, 0) == 0 && rpx_packed_publish(&drv) && take() == 1);
	CHECK(rpx_packed_push(&dev, 0, 0) == 0 && rpx_packed_push(&dev, 0, 0) == RPX_E_INVAL);
	CHECK(dev.broken == 0 && dev.give.at == step(START));
}

/* ----------------------------------------------------------------------------- a hostile device, a good driver ---- */

static void driver_checks_used_id(void)
{
	static const uint16_t bad[] = { 3, 4, 0x7fff, 0xffff };
	for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
		struct rpx_used used;
		make(3);
		CHECK(add1(ADDR, 4, false, 0) == 0 && rpx_packed_publish(&drv));
		set_used(START, bad[i], 0);
		BREAKS_DRV(rpx_packed_get(&drv, &used), USED_ID);
	}
}

static void driver_checks_used_idle(void)
{
	struct rpx_sg sg[2] = { { ADDR, 4 }, { ADDR, 4 } };
	struct rpx_used used;
	for (uint32_t id = 1; id < 4; id++) { /* none of these was ever given */
		make(4);
		CHECK(rpx_packed_add(&drv, sg, 2, 0, 0) == 0 && rpx_packed_publish(&drv));
		set_used(START, id, 0);
		BREAKS_DRV(rpx_packed_get(&drv, &used), USED_IDLE);
	}
	make(4); /* the same one twice */
	CHECK(add1(ADDR, 4, false, 0) == 0 && add1(ADDR, 4, false, 1) == 0 && rpx_packed_publish(&drv));
	set_used(START, 1, 0);
	set_used(step(START), 1, 0);
	CHECK(rpx_packed_get(&drv, &used) == 1 && used.cookie == 1);
	BREAKS_DRV(rpx_packed_get(&drv, &used), USED_IDLE);
	make(4); /* one that is only staged, which the device cannot know */
	CHECK(add1(ADDR, 4, false, 0) == 0 && rpx_packed_publish(&drv) && add1(ADDR, 4, false, 1) == 0);
	set_used(START, 1, 0);
	BREAKS_DRV(rpx_packed_get(&drv, &used), USED_IDLE);
	make(4); /* nothing is out at all */
	set_used(START, 0, 0);
	BREAKS_DRV(rpx_packed_get(&drv, &used), USED_IDLE);
	make(1); /* everything came back, and the slot is marked again */
	CHECK(add1(ADDR, 4, false, 0) == 0 && rpx_packed_publish(&drv));
	set_used(START, 0, 0);
	CHECK(rpx_packed_get(&drv, &used) == 1 && rpx_packed_get(&drv, &used) == 0);
	set_used(step(START), 0, 0);
	BREAKS_DRV(rpx_packed_get(&drv, &used), USED_IDLE);
}

/* A used length: up to the bytes that could be written; it means nothing where none could, or were (2.8.4). */
static void driver_checks_used_len(void)
{
	struct rpx_sg sg[3] = { { ADDR, 30 }, { ADDR, 20 }, { ADDR, 5 } };
	static const struct { uint32_t out, in, most; } cases[] = { { 1, 2, 25 }, { 0, 3, 55 }, { 2, 1, 5 } };
	struct rpx_used used;
	for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
		for (int indirect = 0; indirect < 2; indirect++) {
			for (uint32_t over = 0; over < 2; over++) {
				make(4);
				if (indirect)
					CHECK(rpx_packed_add_indirect(&drv, table(), addr_of(8), sg, cases[k].out, cases[k].in, 9) == 0);
				else
					CHECK(rpx_packed_add(&drv, sg, cases[k].out, cases[k].in, 9) == 0);
				rpx_packed_publish(&drv);
				set_used(START, 0, cases[k].most + over);
				if (over)
					BREAKS_DRV(rpx_packed_get(&drv, &used), USED_LEN);
				else
					CHECK(rpx_packed_get(&drv, &used) == 1 && used.len == cases[k].most);
			}
		}
	}
	make(2);
	CHECK(add1(ADDR, 64, true, 0) == 0 && rpx_packed_publish(&drv));
	set_used(START, 0, UINT32_MAX);
	BREAKS_DRV(rpx_packed_get(&drv, &used), USED_LEN);
	static const struct { uint32_t len, want; bool write; uint32_t flags; } good[] = {
		{ UINT32_MAX, 0, false, WRITE }, /* a readable buffer */
		{ UINT32_MAX, 0, false, 0 },
		{ 65, 0, true, 0 },
		{ 64, 64, true, 0 }, /* QEMU never says WRITE */
	};
	for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
		make(2);
		CHECK(add1(ADDR, 64, good[i].write, 0) == 0 && rpx_packed_publish(&drv));
		put_desc(desc_at(START), 0, good[i].len, 0, good[i].flags | marks(START, true));
		CHECK(rpx_packed_get(&drv, &used) == 1 && used.len == good[i].want);
	}
}

/* ----------------------------------------------------------------------------- a hostile driver, a good device ---- */

static void device_checks_how_much_is_available(void)
{
	for (int pushed = 0; pushed < 3; pushed++) {
		make(3);
		uint16_t place = START;
		for (uint16_t i = 0; i < 3; i++, place = step(place))
			set_avail(place, ADDR, 4, i, 0);
		CHECK(take() == 1 && take() == 1 && take() == 1 && take() == 0);
		if (pushed > 0)
			CHECK(rpx_packed_push(&dev, 1, 0) == 0 && rpx_packed_push(&dev, 0, 0) == 0);
		if (pushed > 1)
			rpx_packed_publish(&dev);
		set_avail(place, ADDR, 4, 1, 0);
		if (pushed < 2) /* held, or given back and not published yet: the driver cannot know */
			BREAKS_DEV(take(), AVAIL_IDX);
		else
			CHECK(take() == 1);
	}
}

static void device_checks_avail_id(void)
{
	static const uint16_t bad[] = { 3, 4, 0x7fff, 0x8000, 0xffff };
	for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
		make(3);
		set_avail(START, ADDR, 4, bad[i], 0);
		BREAKS_DEV(take(), AVAIL_HEAD);
	}
}

static void device_checks_duplicates(void)
{
	make(3);
	set_avail(START, ADDR, 4, 2, 0);
	set_avail(step(START), ADDR, 4, 2, 0);
	CHECK(take() == 1);
	BREAKS_DEV(take(), AVAIL_TWICE);
	make(3); /* given back and offered again later: as it should be */
	uint16_t place = START;
	for (int i = 0; i < 10; i++, place = step(place)) {
		set_avail(place, ADDR, 4, 2, 0);
		CHECK(take() == 1 && rpx_packed_push(&dev, 2, 0) == 0);
		rpx_packed_publish(&dev);
	}
}

static void device_checks_descriptors(void)
{
	static const uint64_t bad[] = { 0, ADDR - 1, ADDR + NUM_MAX * BUF - 3, ADDR + NUM_MAX * BUF, UINT64_MAX - 2, UINT64_MAX };
	for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
		make(3);
		set_avail(START, bad[i], 4, 1, 0);
		BREAKS_DEV(take(), DESC_ADDR);
	}
	make(3); /* a device-writable buffer where nothing may be written */
	set_avail(START, ADDR_RO, 4, 0, 0);
	set_avail(step(START), ADDR_RO, 4, 1, WRITE);
	CHECK(take() == 1);
	BREAKS_DEV(take(), DESC_ADDR);
	make(3);
	set_avail(START, ADDR, NUM_MAX * BUF, 0, 0);
	set_avail(step(START), ADDR, NUM_MAX * BUF + 1, 1, 0);
	CHECK(take() == 1);
	BREAKS_DEV(take(), DESC_ADDR);
	make(3);
	set_avail(START, ADDR, 0, 0, 0);
	BREAKS_DEV(take(), DESC_LEN);
	make(3);
	set_avail(START, ADDR, 4, 0, NEXT | WRITE);
	set_avail(step(START), ADDR, 4, 0, 0);
	BREAKS_DEV(take(), DESC_ORDER);
}

static void device_checks_lists(void)
{
	make(3); /* 2.8.6-F1: all of them are available when the first is */
	set_avail(START, ADDR, 4, 0, NEXT);
	BREAKS_DEV(take(), CHAIN_NEXT);
	make(3); /* used ones do not count */
	set_avail(START, ADDR, 4, 0, NEXT);
	set_used(step(START), 0, 0);
	BREAKS_DEV(take(), CHAIN_NEXT);
	make(3); /* no end */
	for (uint32_t i = 0; i < 3; i++)
		set_avail(steps(START, i), ADDR, 4, 0, NEXT);
	BREAKS_DEV(take(), CHAIN_STEPS);
	for (uint32_t length = 2; length <= 3; length++) { /* the device holds one: two are left */
		make(3);
		set_avail(START, ADDR, 4, 0, 0);
		CHECK(take() == 1);
		for (uint32_t i = 0; i < length; i++)
			set_avail(steps(START, 1 + i), ADDR, 4, 1, i + 1 < length ? NEXT : 0);
		if (length == 2)
			CHECK(take() == 2);
		else
			BREAKS_DEV(take(), CHAIN_STEPS);
	}
	for (uint32_t budget = 7; budget <= 8; budget++) {
		struct rpx_packed_chain c;
		struct rpx_seg seg;
		make(3);
		set_avail(START, ADDR, 4, 0, NEXT);
		set_avail(step(START), ADDR, 4, 0, 0);
		CHECK(rpx_packed_pop(&dev, &c) == 1);
		c.bytes_left = budget;
		CHECK(rpx_packed_next(&c, &dev, &mem, &seg) == 1);
		if (budget == 8)
			CHECK(rpx_packed_next(&c, &dev, &mem, &seg) == 1);
		else
			BREAKS_DEV(rpx_packed_next(&c, &dev, &mem, &seg), CHAIN_BYTES);
	}
}

static void device_checks_indirect(void)
{
	make_at(3, false, false, false, START);
	set_avail(START, addr_of(8), 16, 0, INDIRECT);
	put_desc(table(), ADDR, 4, 0, 0);
	BREAKS_DEV(take(), INDIRECT_OFF);

	static const uint32_t mixed[][2] = { { INDIRECT | NEXT, 0 }, { NEXT, INDIRECT }, { NEXT, INDIRECT | NEXT } };
	for (size_t i = 0; i < sizeof mixed / sizeof *mixed; i++) { /* 2.8.19-4 */
		make(3);
		set_avail(START, addr_of(8), 16, 0, mixed[i][0]);
		set_avail(step(START), addr_of(8), 16, 0, mixed[i][1]);
		set_avail(steps(START, 2), ADDR, 4, 0, 0);
		put_desc(table(), ADDR, 4, 0, 0);
		BREAKS_DEV(take(), INDIRECT_NEXT);
	}
	static const uint32_t bad[] = { 0, 1, 15, 17, 24, UINT32_MAX };
	for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
		make(3);
		set_avail(START, addr_of(8), bad[i], 0, INDIRECT);
		BREAKS_DEV(take(), INDIRECT_LEN);
	}
	for (uint32_t n = 3; n <= 4; n++) { /* a table of the queue's size, and one more */
		make(3);
		set_avail(START, addr_of(8), 16 * n, 0, INDIRECT);
		for (uint32_t i = 0; i < n; i++)
			put_desc(&table()[i], ADDR, 4, 0, 0);
		if (n == 3)
			CHECK(take() == 3);
		else
			BREAKS_DEV(take(), CHAIN_STEPS);
	}
	static const uint64_t outside[] = { ADDR - 16, ADDR + NUM_MAX * BUF - 8, ADDR + 4, UINT64_MAX - 15 };
	for (size_t i = 0; i < sizeof outside / sizeof *outside; i++) { /* the third is not aligned */
		make(3);
		put_desc((struct rpx_packed_desc *)(void *)bufs, addr_of(1), 4, 0, 0);
		set_avail(START, outside[i], 16, 0, INDIRECT);
		BREAKS_DEV(take(), DESC_ADDR);
	}
	make(3); /* an empty element, and a readable one that comes too late, of a table */
	set_avail(START, addr_of(8), 32, 0, INDIRECT);
	put_desc(&table()[0], ADDR, 4, 0, WRITE);
	put_desc(&table()[1], ADDR, 4, 0, 0);
	BREAKS_DEV(take(), DESC_ORDER);
	make(3);
	set_avail(START, addr_of(8), 16, 0, INDIRECT);
	BREAKS_DEV(take(), DESC_LEN);
}

/* A driver that changes its mind while the device looks: what was decided once stays. */
static void device_is_not_misled_by_changes(void)
{
	struct rpx_packed_chain c;
	struct rpx_seg seg;
	make(3); /* a list becomes a table */
	set_avail(START, addr_of(8), 48, 0, NEXT);
	set_avail(step(START), ADDR, 4, 0, 0);
	put_desc(table(), ADDR, 4, 0, 0);
	CHECK(rpx_packed_pop(&dev, &c) == 1 && c.left == 2);
	set_avail(START, addr_of(8), 48, 0, INDIRECT);
	BREAKS_DEV(rpx_packed_next(&c, &dev, &mem, &seg), INDIRECT_NEXT);
	make(3); /* or its last descriptor does */
	set_avail(START, ADDR, 4, 0, NEXT);
	set_avail(step(START), addr_of(8), 48, 0, 0);
	put_desc(table(), ADDR, 4, 0, 0);
	CHECK(rpx_packed_pop(&dev, &c) == 1 && c.left == 2 && rpx_packed_next(&c, &dev, &mem, &seg) == 1);
	set_avail(step(START), addr_of(8), 48, 0, INDIRECT);
	BREAKS_DEV(rpx_packed_next(&c, &dev, &mem, &seg), INDIRECT_NEXT);
	make(3); /* one buffer becomes a list, with another id */
	set_avail(START, ADDR, 4, 0, 0);
	CHECK(rpx_packed_pop(&dev, &c) == 1 && c.left == 1);
	set_avail(START, ADDR, 4, 9, NEXT);
	set_avail(step(START), ADDR, 4, 9, 0);
	CHECK(rpx_packed_next(&c, &dev, &mem, &seg) == 1 && rpx_packed_next(&c, &dev, &mem, &seg) == 0);
	CHECK(c.id == 0 && dev.take.at == step(START) && rpx_packed_push(&dev, c.id, 0) == 0);
	make(3); /* a list becomes shorter, and is taken back */
	set_avail(START, ADDR, 4, 0, NEXT);
	set_avail(step(START), ADDR, 4, 0, 0);
	CHECK(rpx_packed_pop(&dev, &c) == 1);
	set_used(START, 7, 4);
	CHECK(rpx_packed_push(&dev, c.id, 0) == 0 && dev.give.at == steps(START, 2));
}

/* How many buffers are ahead, as each end counts them. */
static void ahead_counts(void)
{
	struct rpx_sg sg[3] = { { ADDR, 4 }, { ADDR + 4, 4 }, { ADDR + 8, 4 } };
	struct rpx_used used;
	make_at(7, false, false, false, 5);
	CHECK(rpx_packed_ahead(&dev) == 0 && rpx_packed_ahead(&drv) == 0);
	for (uint32_t i = 0; i < 7; i++)
		CHECK(add1(ADDR, 4, false, i) == 0);
	CHECK(rpx_packed_ahead(&dev) == 0 && rpx_packed_publish(&drv) && rpx_packed_ahead(&dev) == 7);
	CHECK(take() == 1 && rpx_packed_ahead(&dev) == 6 && rpx_packed_push(&dev, 0, 0) == 0 && rpx_packed_publish(&dev));
	CHECK(rpx_packed_ahead(&drv) == 1);
	make_at(7, false, false, false, 5); /* the driver knows how long the lists were */
	CHECK(rpx_packed_add(&drv, sg, 3, 0, 0) == 0 && rpx_packed_add(&drv, sg, 1, 2, 1) == 0 && add1(ADDR, 4, false, 2) == 0);
	CHECK(rpx_packed_publish(&drv) && take() == 3 && take() == 3 && take() == 1);
	for (uint16_t id = 0; id < 3; id++)
		CHECK(rpx_packed_push(&dev, id, 0) == 0 && rpx_packed_ahead(&drv) == 0); /* the first waits */
	for (uint32_t i = 3; i > 0; i--) {
		rpx_packed_publish(&dev);
		CHECK(rpx_packed_ahead(&drv) == i && rpx_packed_get(&drv, &used) == 1);
	}
	CHECK(rpx_packed_ahead(&drv) == 0);
	make(3); /* what a broken device says does not count */
	CHECK(add1(ADDR, 4, false, 0) == 0 && add1(ADDR, 4, false, 1) == 0 && rpx_packed_publish(&drv));
	set_used(START, 0, 0);
	set_used(step(START), 3, 0);
	CHECK(rpx_packed_ahead(&drv) == 1);
	set_used(step(START), 2, 0);
	CHECK(rpx_packed_ahead(&drv) == 1);
	set_used(step(START), 0, 0);
	set_used(steps(START, 2), 0, 0);
	CHECK(rpx_packed_ahead(&drv) == 3); /* the same one again and again: bounded */
}

/* ---------------------------------------------------------------------------------------------- notifications ---- */

static void notifications_by_flag(void)
{
	make(4);
	struct rpx_packed_chain c;
	struct rpx_used used;
	CHECK(!rpx_packed_publish(&drv) && !rpx_packed_publish(&dev)); /* nothing staged */
	CHECK(add1(ADDR, 4, false, 0) == 0 && rpx_packed_publish(&drv)); /* on at first */
	rpx_packed_mute(&dev);
	CHECK(rpx_get32(ring.device, false) == RPX_PACKED_EVENT_DISABLE << 16);
	CHECK(add1(ADDR, 4, false, 1) == 0 && !rpx_packed_publish(&drv));
	CHECK(rpx_packed_unmute(&dev) && rpx_get32(ring.device, false) == RPX_PACKED_EVENT_ENABLE << 16); /* two to look at */
	CHECK(pop(&c) == 1 && rpx_packed_unmute(&dev) && pop(&c) == 1 && !rpx_packed_unmute(&dev));
	CHECK(add1(ADDR, 4, false, 2) == 0 && rpx_packed_publish(&drv));

	CHECK(!rpx_packed_unmute(&drv) && rpx_packed_push(&dev, 0, 0) == 0 && rpx_packed_publish(&dev));
	rpx_packed_mute(&drv);
	CHECK(rpx_get32(ring.driver, false) == RPX_PACKED_EVENT_DISABLE << 16);
	CHECK(rpx_packed_push(&dev, 1, 0) == 0 && !rpx_packed_publish(&dev));
	CHECK(rpx_packed_unmute(&drv) && rpx_get32(ring.driver, false) == RPX_PACKED_EVENT_ENABLE << 16);
	CHECK(rpx_packed_get(&drv, &used) == 1 && rpx_packed_unmute(&drv));
	CHECK(rpx_packed_get(&drv, &used) == 1 && !rpx_packed_unmute(&drv));
}

static void notifications_by_threshold(void)
{
	static const uint16_t starts[] = { START, 6, START + 6, 4 };
	for (size_t s = 0; s < sizeof starts / sizeof *starts; s++) {
		make_at(7, false, true, false, starts[s]);
		uint16_t from = starts[s];
		struct rpx_used used;
		set_event(ring.device, from, RPX_PACKED_EVENT_DESC);
		set_event(ring.driver, from, RPX_PACKED_EVENT_DESC);
		CHECK(add1(ADDR, 4, false, 0) == 0 && rpx_packed_publish(&drv)); /* the first */
		CHECK(add1(ADDR, 4, false, 1) == 0 && !rpx_packed_publish(&drv)); /* it was passed before */
		CHECK(rpx_packed_unmute(&dev) && take() == 1 && take() == 1 && !rpx_packed_unmute(&dev));
		CHECK(rpx_get32(ring.device, false) == (RPX_PACKED_EVENT_DESC << 16 | steps(from, 2)));
		CHECK(add1(ADDR, 4, false, 2) == 0 && add1(ADDR, 4, false, 3) == 0 && rpx_packed_publish(&drv));
		rpx_packed_mute(&dev);
		CHECK(add1(ADDR, 4, false, 4) == 0 && !rpx_packed_publish(&drv));

		CHECK(rpx_packed_push(&dev, 0, 0) == 0 && rpx_packed_publish(&dev));
		CHECK(rpx_packed_push(&dev, 1, 0) == 0 && !rpx_packed_publish(&dev));
		CHECK(rpx_packed_unmute(&drv) && rpx_packed_get(&drv, &used) == 1 && rpx_packed_get(&drv, &used) == 1);
		CHECK(!rpx_packed_unmute(&drv));
		CHECK(rpx_get32(ring.driver, false) == (RPX_PACKED_EVENT_DESC << 16 | steps(from, 2)));
		CHECK(take() == 1 && rpx_packed_push(&dev, 2, 0) == 0 && rpx_packed_publish(&dev));
		rpx_packed_mute(&drv);
		CHECK(take() == 1 && rpx_packed_push(&dev, 3, 0) == 0 && !rpx_packed_publish(&dev));
	}
}

/* ------------------------------------------------------------------------------------------------------ rpmsg ---- */

static struct rpx_rx rx; /* of one role, */
static struct rpx_tx tx; /* with the other role's other end of the same ring */
static uint32_t spare[2 * NUM_MAX];
static _Alignas(4) uint8_t scratch[100];

/* One vring of three: driver sends to device, or device sends to driver. */
static void make_link(bool to_device, uint8_t kind)
{
	make(3);
	memset(&rx, 0, sizeof rx);
	memset(&tx, 0, sizeof tx);
	rx.kind = tx.kind = kind;
	rx.mem = tx.mem = &mem;
	rx.pool = tx.pool = (struct rpx_pool){ bufs, ADDR, BUF, 3 };
	rx.scratch = scratch;
	rx.scratch_size = sizeof scratch;
	tx.spare = spare;
	*(to_device ? &tx.packed : &rx.packed) = &drv;
	*(to_device ? &rx.packed : &tx.packed) = &dev;
	if (to_device)
		rpx_tx_start_drv(&tx);
	else if (rpx_rx_post(&rx) != 0 || !rpx_rx_publish(&rx))
		abort();
}

/* The device's end alone, whose driver is the test. */
static void make_device(void)
{
	make_link(true, RPX_KIND_CACHED);
	tx.packed = &dev;
}

static struct rpx_rpmsg_hdr *header(uint32_t i)
{
	return (struct rpx_rpmsg_hdr *)(void *)(bufs + i * BUF);
}

/* Driver's rx: what a used length and hdr.len may say. A dropped message's buffer is on its way back. */
static void driver_drops_short_and_long(void)
{
	static const struct { uint32_t used; uint16_t hdr; int want; } cases[] = {
		{ 0, 0, RPX_RX_SHORT }, { 15, 0, RPX_RX_SHORT }, { 16, 0, RPX_RX_MESSAGE }, { 16, 1, RPX_RX_LONG },
		{ 64, 48, RPX_RX_MESSAGE }, { 64, 49, RPX_RX_LONG }, { 64, 0xffff, RPX_RX_LONG }, { 20, 3, RPX_RX_MESSAGE },
	};
	struct rpx_msg msg;
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		make_link(false, RPX_KIND_CACHED);
		rpx_put16(&header(1)->len, cases[i].hdr, false);
		set_used(START, 1, cases[i].used);
		CHECK(rpx_rx_next(&rx, &msg) == cases[i].want && drv.broken == 0);
		if (cases[i].want == RPX_RX_MESSAGE)
			CHECK(msg.len == cases[i].hdr && msg.data == bufs + BUF + RPX_HDR && rpx_rx_done(&rx, msg.token) == 0);
		rpx_rx_publish(&rx);
		CHECK(flags_at(START ^ 0x8000u) == (marks(START ^ 0x8000u, false) | WRITE)); /* posted again */
		CHECK(rpx_get64(&ring.desc[0].addr, false) == addr_of(1) && rpx_get32(&ring.desc[0].len, false) == BUF);
	}
	make_link(false, RPX_KIND_CACHED);
	set_used(START, 0, BUF + 1);
	CHECK(rpx_rx_next(&rx, &msg) == RPX_E_USED_LEN && rpx_rx_broken(&rx) == RPX_E_USED_LEN);
	CHECK(rpx_rx_next(&rx, &msg) == RPX_E_USED_LEN && rpx_rx_done(&rx, 0) == RPX_E_USED_LEN);
}

static void device_drops_short_and_long(void)
{
	static const struct { uint32_t len; uint16_t hdr; int want; } cases[] = {
		{ 1, 0, RPX_RX_SHORT }, { 15, 0, RPX_RX_SHORT }, { 16, 0, RPX_RX_MESSAGE }, { 16, 1, RPX_RX_LONG },
		{ 64, 48, RPX_RX_MESSAGE }, { 64, 49, RPX_RX_LONG }, { 64, 0xffff, RPX_RX_LONG },
	};
	struct rpx_msg msg;
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		make_device();
		rpx_put16(&header(0)->len, cases[i].hdr, false);
		set_avail(START, ADDR, cases[i].len, 2, 0);
		CHECK(rpx_rx_next(&rx, &msg) == cases[i].want && dev.broken == 0);
		if (cases[i].want == RPX_RX_MESSAGE)
			CHECK(rpx_rx_done(&rx, msg.token) == 0 && rpx_rx_done(&rx, msg.token) == RPX_E_INVAL);
		rpx_rx_publish(&rx);
		CHECK(flags_at(START) == marks(START, true) && rpx_get16(&ring.desc[0].id, false) == 2);
		CHECK(rpx_get32(&ring.desc[0].len, false) == 0);
	}
	make_device(); /* a header that this CPU might not be able to read */
	set_avail(START, ADDR + 2, 32, 2, 0);
	BREAKS_DEV(rpx_rx_next(&rx, &msg), DESC_ADDR);
}

/* A message may be cut anywhere, even in its header; nothing of a list is read after something was given. */
static void lists_are_gathered(void)
{
	struct rpx_msg msg;
	for (uint32_t cut = 1; cut < 40; cut++) {
		for (int f = 0; f < 6; f++) {
			make_link(true, (uint8_t)(f >> 1));
			struct rpx_sg sg[2] = { { addr_of(2), cut }, { addr_of(3), 40 - cut } };
			rpx_put32(&header(1)->src, 7, false);
			rpx_put32(&header(1)->dst, 8, false);
			rpx_put16(&header(1)->len, 24, false);
			for (uint32_t i = 0; i < 24; i++)
				bufs[BUF + RPX_HDR + i] = (uint8_t)(100 + i);
			memcpy(bufs + 2 * BUF, bufs + BUF, cut);
			memcpy(bufs + 3 * BUF, bufs + BUF + cut, 40 - cut);
			if ((f & 1) != 0)
				CHECK(rpx_packed_add_indirect(&drv, table(), addr_of(8), sg, 2, 0, 0) == 0);
			else
				CHECK(rpx_packed_add(&drv, sg, 2, 0, 0) == 0);
			CHECK(rpx_packed_publish(&drv) && !rpx_rx_peek(&rx, &msg)); /* not the short way */
			CHECK(rpx_rx_next(&rx, &msg) == RPX_RX_MESSAGE && msg.src == 7 && msg.dst == 8 && msg.len == 24);
			CHECK(msg.copied && msg.data == scratch + RPX_HDR && msg.room == 40);
			CHECK(memcmp(msg.data, bufs + BUF + RPX_HDR, 24) == 0 && rpx_rx_done(&rx, msg.token) == 0);
		}
	}
	static const struct { uint32_t first, second, room; bool scratch; int want; } cases[] = {
		{ 50, 50, 100, true, RPX_RX_MESSAGE }, /* filled to the last byte */
		{ 50, 51, 0, true, RPX_E_CHAIN_BYTES },
		{ 101, 1, 0, true, RPX_E_CHAIN_BYTES },
		{ 50, UINT32_MAX, 0, true, RPX_E_DESC_ADDR },
		{ 50, 50, 0, false, RPX_E_CHAIN_BYTES }, /* no place to put it together */
		{ 8, 7, 15, true, RPX_RX_SHORT }, /* are no header */
		{ 8, 0, 0, true, RPX_E_DESC_LEN },
	};
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		make_device();
		rx.scratch = cases[i].scratch ? scratch : NULL;
		rx.scratch_size = cases[i].scratch ? sizeof scratch : 0;
		set_avail(START, ADDR, cases[i].first, 1, NEXT);
		set_avail(step(START), addr_of(4), cases[i].second, 1, 0);
		CHECK(rpx_rx_next(&rx, &msg) == cases[i].want && (cases[i].want < 0 || msg.room == cases[i].room));
	}
	make_device(); /* a table of one is a buffer as any other */
	set_avail(START, addr_of(8), 16, 1, INDIRECT);
	put_desc(table(), ADDR, 16, 0, 0);
	CHECK(rpx_rx_next(&rx, &msg) == RPX_RX_MESSAGE && !msg.copied && msg.data == bufs + RPX_HDR);
}

/* A device that sends takes what the driver posted: too short for a header is returned empty, readable is refused. */
static void device_tx_checks_posted_buffers(void)
{
	struct rpx_txbuf buf;
	struct rpx_used used;
	make_device();
	static const uint32_t lens[] = { 15, 16, 64 };
	for (uint32_t i = 0; i < 3; i++)
		CHECK(add1(addr_of(i), lens[i], true, i) == 0);
	rpx_packed_publish(&drv);
	CHECK(rpx_tx_get(&tx, &buf) == RPX_TX_BUFFER && buf.cap == 0 && buf.data == bufs + BUF + RPX_HDR);
	CHECK(rpx_tx_put(&tx, &buf, 1, 2, 0) == 0 && rpx_tx_publish(&tx));
	for (uint32_t i = 0; i < 2; i++)
		CHECK(rpx_packed_get(&drv, &used) == 1 && used.cookie == i && used.len == (i < 1 ? 0 : RPX_HDR));
	CHECK(rpx_tx_get(&tx, &buf) == RPX_TX_BUFFER && buf.cap == 48 && rpx_tx_put(&tx, &buf, 1, 2, 48) == 0);
	CHECK(rpx_tx_publish(&tx) && rpx_packed_get(&drv, &used) == 1 && used.cookie == 2 && used.len == 64);
	CHECK(rpx_tx_get(&tx, &buf) == RPX_TX_NONE);

	make_device(); /* nothing but useless ones: the work is bounded */
	for (uint32_t i = 0; i < 3; i++)
		CHECK(add1(addr_of(i), 8, true, i) == 0);
	rpx_packed_publish(&drv);
	CHECK(rpx_tx_get(&tx, &buf) == RPX_TX_NONE && dev.give.at == dev.take.at && rpx_tx_publish(&tx));

	make_device();
	set_avail(START, ADDR, 64, 0, 0);
	BREAKS_DEV(rpx_tx_get(&tx, &buf), DESC_READONLY);
	make_device();
	set_avail(START, ADDR + 2, 32, 0, WRITE);
	BREAKS_DEV(rpx_tx_get(&tx, &buf), DESC_ADDR);
	make_device(); /* of a list, the first element; all of it comes back */
	struct rpx_sg sg[2] = { { addr_of(0), 32 }, { addr_of(1), 32 } };
	CHECK(rpx_packed_add(&drv, sg, 0, 2, 5) == 0 && rpx_packed_publish(&drv));
	CHECK(rpx_tx_get(&tx, &buf) == RPX_TX_BUFFER && buf.cap == 16 && buf.data == bufs + RPX_HDR);
	CHECK(rpx_tx_put(&tx, &buf, 1, 2, 16) == 0 && rpx_tx_publish(&tx) && rpx_packed_get(&drv, &used) == 1);
	CHECK(used.cookie == 5 && used.len == 32 && drv.num_free == 3);
}

/* A buffer that was handed back unsent has its descriptor overwritten by those that are given; it is as it was. */
static void spare_buffers_outlive_their_descriptors(void)
{
	struct rpx_txbuf a, b, c, again;
	struct rpx_used used;
	static const uint32_t lens[] = { 64, 32, 48 };
	make_device();
	for (uint32_t i = 0; i < 3; i++)
		CHECK(add1(addr_of(i), lens[i], true, i) == 0);
	rpx_packed_publish(&drv);
	CHECK(rpx_tx_get(&tx, &a) == RPX_TX_BUFFER && rpx_tx_get(&tx, &b) == RPX_TX_BUFFER);
	CHECK(rpx_tx_get(&tx, &c) == RPX_TX_BUFFER);
	CHECK(rpx_tx_get(&tx, &again) == RPX_TX_NONE);
	rpx_tx_unget(&tx, &a);
	CHECK(rpx_tx_put(&tx, &b, 1, 2, 16) == 0); /* where a's descriptor was */
	rpx_tx_unget(&tx, &c);
	CHECK(rpx_tx_publish(&tx) && rpx_packed_get(&drv, &used) == 1 && used.cookie == 1 && used.len == 32);
	CHECK(add1(addr_of(7), 20, true, 7) == 0); /* and where the driver puts another one */
	rpx_packed_publish(&drv);
	CHECK(rpx_tx_get(&tx, &again) == RPX_TX_BUFFER && again.data == c.data && again.cap == 32 && tx.room == 32);
	CHECK(rpx_tx_put(&tx, &again, 1, 2, 32) == 0);
	CHECK(rpx_tx_get(&tx, &again) == RPX_TX_BUFFER && again.data == a.data && again.cap == 48 && tx.room == 48);
	CHECK(rpx_tx_put(&tx, &again, 1, 2, 48) == 0);
	CHECK(rpx_tx_get(&tx, &again) == RPX_TX_BUFFER && again.data == bufs + 7 * BUF + RPX_HDR && again.cap == 4);
	CHECK(rpx_tx_put(&tx, &again, 1, 2, 4) == 0 && rpx_tx_publish(&tx));
	static const struct rpx_used want[] = { { 2, 48 }, { 0, 64 }, { 7, 20 } };
	for (uint32_t i = 0; i < 3; i++)
		CHECK(rpx_packed_get(&drv, &used) == 1 && used.cookie == want[i].cookie && used.len == want[i].len);
}

/* ---------------------------------------------------------------------------------------------- the short way ---- */

/* Everything that an end could change. */
static struct state {
	struct rpx_packed drv, dev;
	struct rpx_packed_buf drv_bufs[3], dev_bufs[3];
	struct memory shared;
	uint8_t bufs[NUM_MAX * BUF];
} before, after;

static void look_at_all(struct state *s)
{
	memcpy(&s->drv, &drv, sizeof drv);
	memcpy(&s->dev, &dev, sizeof dev);
	memcpy(s->drv_bufs, drv_bufs, sizeof s->drv_bufs);
	memcpy(s->dev_bufs, dev_bufs, sizeof s->dev_bufs);
	look_around(&s->shared);
	memcpy(s->bufs, bufs, sizeof s->bufs);
}

/* The short way in shows nothing, and leaves everything as it is. */
static bool shows_nothing(void)
{
	struct rpx_msg msg;
	struct rpx_rx_run run;
	look_at_all(&before);
	bool shown = rpx_rx_peek(&rx, &msg);
	rpx_rx_run_begin(&run, &rx, 3);
	shown = rpx_rx_run_peek(&run, &msg) || shown;
	rpx_rx_run_end(&run, &rx);
	look_at_all(&after);
	return !shown && run.n == 0 && memcmp(&before, &after, sizeof before) == 0;
}

/* And so does the way out, for a message of `size` bytes. */
static bool sends_nothing(size_t size)
{
	static const uint8_t bytes[0x10001];
	struct rpx_tx_run run;
	look_at_all(&before);
	bool sent = rpx_tx_turn(&tx, 1, 2, bytes, size);
	rpx_tx_run_begin(&run, &tx, 3);
	sent = rpx_tx_run_turn(&run, 1, 2, bytes, size) || sent;
	rpx_tx_run_end(&run, &tx);
	look_at_all(&after);
	return !sent && run.n == 0 && memcmp(&before, &after, sizeof before) == 0;
}

/* How many messages a run takes, without breaking anything. */
static uint32_t run_in(void)
{
	struct rpx_msg msg;
	struct rpx_rx_run run;
	rpx_rx_run_begin(&run, &rx, 9);
	while (rpx_rx_run_peek(&run, &msg))
		rpx_rx_run_turn(&run, &msg);
	rpx_rx_run_end(&run, &rx);
	return rpx_rx_broken(&rx) == 0 && run.max == 3 ? run.n : 99;
}

static uint32_t run_out(void)
{
	struct rpx_tx_run run;
	rpx_tx_run_begin(&run, &tx, 9);
	while (rpx_tx_run_turn(&run, 1, 2, "", 0))
		;
	rpx_tx_run_end(&run, &tx);
	return rpx_tx_broken(&tx) == 0 ? run.n : 99;
}

static void device_short_way_in(void)
{
	static const struct { uint32_t id; uint64_t addr; uint32_t len, flags; uint16_t hdr; int want; } cases[] = {
		{ 3, ADDR, 64, 0, 0, RPX_E_AVAIL_HEAD },
		{ 0xffff, ADDR, 64, 0, 0, RPX_E_AVAIL_HEAD },
		{ 1, ADDR, 0, 0, 0, RPX_E_DESC_LEN },
		{ 1, ADDR, 15, 0, 0, RPX_RX_SHORT },
		{ 1, ADDR, 64, 0, 49, RPX_RX_LONG },
		{ 1, ADDR + 2, 32, 0, 0, RPX_E_DESC_ADDR },
		{ 1, ADDR - 4, 32, 0, 0, RPX_E_DESC_ADDR },
		{ 1, ADDR, NUM_MAX * BUF + 1, 0, 0, RPX_E_DESC_ADDR },
		{ 1, ADDR, 32, NEXT, 0, RPX_E_CHAIN_NEXT },
		{ 1, ADDR + BUF, 32, INDIRECT, 0, RPX_E_DESC_LEN },
		{ 1, ADDR, 64, WRITE, 0, RPX_RX_MESSAGE }, /* odd, but harmless */
	};
	struct rpx_msg msg;
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		make_device();
		rpx_put16(&header(0)->len, cases[i].hdr, false);
		set_avail(START, cases[i].addr, cases[i].len, cases[i].id, cases[i].flags);
		CHECK(shows_nothing());
		CHECK(rpx_rx_next(&rx, &msg) == cases[i].want);
		CHECK(cases[i].want > 0 || (rpx_rx_look(&rx) == cases[i].want && shows_nothing()));
	}
	make_device(); /* what it shows stays until it is taken */
	CHECK(shows_nothing());
	set_avail(START, ADDR, 64, 1, 0);
	CHECK(rpx_rx_peek(&rx, &msg) && rpx_rx_peek(&rx, &msg) && msg.room == 64 && dev.take.at == START);
	CHECK(rpx_rx_next(&rx, &msg) == RPX_RX_MESSAGE);
	set_avail(step(START), ADDR, 64, 1, 0); /* while it is held */
	CHECK(shows_nothing());
	BREAKS_DEV(rpx_rx_next(&rx, &msg), AVAIL_TWICE);
	make_device(); /* more than there can be, before what was taken is published as used */
	for (uint16_t i = 0; i < 3; i++)
		set_avail(steps(START, i), ADDR, 64, i, 0);
	CHECK(run_in() == 3);
	set_avail(steps(START, 3), ADDR, 64, 0, 0);
	CHECK(run_in() == 0 && shows_nothing());
	BREAKS_DEV(rpx_rx_next(&rx, &msg), AVAIL_IDX);
}

static void driver_short_way_in(void)
{
	static const struct { uint32_t id, len; uint16_t hdr; int want; } cases[] = {
		{ 3, 16, 0, RPX_E_USED_ID }, { 0xffff, 16, 0, RPX_E_USED_ID }, { 1, BUF + 1, 0, RPX_E_USED_LEN },
		{ 1, UINT32_MAX, 0, RPX_E_USED_LEN }, { 1, 15, 0, RPX_RX_SHORT }, { 1, 20, 5, RPX_RX_LONG },
	};
	struct rpx_msg msg;
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		make_link(false, RPX_KIND_CACHED);
		CHECK(shows_nothing());
		rpx_put16(&header(1)->len, cases[i].hdr, false);
		set_used(START, cases[i].id, cases[i].len);
		CHECK(shows_nothing());
		CHECK(rpx_rx_next(&rx, &msg) == cases[i].want);
		CHECK(cases[i].want > 0 || (rpx_rx_look(&rx) == cases[i].want && shows_nothing()));
	}
	make_link(false, RPX_KIND_CACHED); /* the same one twice: when it comes again it is staged, and not the device's */
	set_used(START, 1, 16);
	set_used(step(START), 1, 16);
	CHECK(run_in() == 1 && shows_nothing());
	BREAKS_DRV(rpx_rx_next(&rx, &msg), USED_IDLE);
	make_link(false, RPX_KIND_CACHED); /* after a publication the device has it again */
	set_used(START, 1, 16);
	CHECK(run_in() == 1);
	rpx_rx_publish(&rx);
	set_used(step(START), 1, 16);
	CHECK(run_in() == 1);
}

static void device_short_way_out(void)
{
	static const struct { uint64_t addr; uint32_t len, flags; int want; } cases[] = {
		{ ADDR, 64, 0, RPX_E_DESC_READONLY },
		{ ADDR, 15, WRITE, RPX_TX_NONE },
		{ ADDR, 0, WRITE, RPX_E_DESC_LEN },
		{ ADDR, 63, WRITE, RPX_TX_BUFFER }, /* one byte short of the 48 to be sent */
		{ ADDR + 2, 66, WRITE, RPX_E_DESC_ADDR },
		{ ADDR_RO, 64, WRITE, RPX_E_DESC_ADDR },
		{ ADDR, 64, WRITE | NEXT, RPX_E_CHAIN_NEXT },
		{ ADDR, 48, WRITE | INDIRECT, RPX_E_DESC_LEN },
	};
	struct rpx_txbuf buf;
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		make_device();
		CHECK(sends_nothing(0));
		set_avail(START, cases[i].addr, cases[i].len, 0, cases[i].flags);
		CHECK(sends_nothing(48) && dev.broken == 0);
		CHECK(rpx_tx_get(&tx, &buf) == cases[i].want);
	}
	make_device();
	for (uint16_t i = 0; i < 3; i++)
		set_avail(steps(START, i), addr_of(i), 64, i, WRITE);
	CHECK(run_out() == 3 && flags_at(START) == (marks(START, false) | WRITE)); /* the first one's flags wait */
	set_avail(steps(START, 3), ADDR, 64, 0, WRITE); /* more than there can be */
	CHECK(sends_nothing(0));
	BREAKS_DEV(rpx_tx_get(&tx, &buf), AVAIL_IDX);
}

static void driver_short_way_out(void)
{
	struct rpx_txbuf buf;
	for (uint32_t id = 1; id < 4; id++) { /* one that is only staged, one that is idle, one that there is not */
		make_link(true, RPX_KIND_CACHED);
		CHECK(sends_nothing(0)); /* no buffer has come back */
		CHECK(rpx_tx_send(&tx, 1, 2, "", 0) == RPX_TX_BUFFER && rpx_tx_publish(&tx));
		CHECK(rpx_tx_send(&tx, 1, 2, "", 0) == RPX_TX_BUFFER);
		set_used(START, id, 0);
		CHECK(sends_nothing(0) && drv.broken == 0);
		CHECK(rpx_tx_get(&tx, &buf) == (id < 3 ? RPX_E_USED_IDLE : RPX_E_USED_ID));
	}
	make_link(true, RPX_KIND_CACHED); /* the same one twice */
	CHECK(rpx_tx_send(&tx, 1, 2, "", 0) == RPX_TX_BUFFER && rpx_tx_send(&tx, 1, 2, "", 0) == RPX_TX_BUFFER);
	rpx_tx_publish(&tx);
	set_used(START, 1, 0);
	set_used(step(START), 1, 0);
	CHECK(sends_nothing(BUF - RPX_HDR + 1) && run_out() == 1 && sends_nothing(0));
	BREAKS_DRV(rpx_tx_get(&tx, &buf), USED_IDLE);
}

/* Last: whatever a peer can do wrong was done above. */
static void every_error_was_raised(void)
{
#define RPX_X(name, rule, text) \
	if (!raised[RPX_ORD_##name]) \
		printf("  never raised: %s\n", text); \
	CHECK(raised[RPX_ORD_##name]);
	RPX_PACKED_ERRORS(RPX_X)
#undef RPX_X
}

int main(void)
{
	TEST(errors_have_rules_and_texts);
	TEST(ring_init_refuses);
	TEST(fields_lie_where_they_should);
	TEST(places_are_single_steps);
	TEST(thresholds_are_their_definition);
	TEST(wrap_counters_wrap);
	TEST(completions_in_any_order);
	TEST(largest_queue);
	TEST(lists_are_walked);
	TEST(neither_end_touches_what_it_made_over);
	TEST(free_list);
	TEST(driver_refuses_bad_lists);
	TEST(numbered_buffers);
	TEST(push_refuses_what_was_not_popped);
	TEST(driver_checks_used_id);
	TEST(driver_checks_used_idle);
	TEST(driver_checks_used_len);
	TEST(device_checks_how_much_is_available);
	TEST(device_checks_avail_id);
	TEST(device_checks_duplicates);
	TEST(device_checks_descriptors);
	TEST(device_checks_lists);
	TEST(device_checks_indirect);
	TEST(device_is_not_misled_by_changes);
	TEST(ahead_counts);
	TEST(notifications_by_flag);
	TEST(notifications_by_threshold);
	TEST(driver_drops_short_and_long);
	TEST(device_drops_short_and_long);
	TEST(lists_are_gathered);
	TEST(device_tx_checks_posted_buffers);
	TEST(spare_buffers_outlive_their_descriptors);
	TEST(device_short_way_in);
	TEST(driver_short_way_in);
	TEST(device_short_way_out);
	TEST(driver_short_way_out);
	TEST(every_error_was_raised);
	unmake();
	printf("%d of %d failed\n", failures, total);
	return failures != 0;
}
