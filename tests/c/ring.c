/* SPDX-License-Identifier: BSD-3-Clause */
/* The rules of the ring core, one function each. Ring parts and buffers are heap pieces of exact size, for ASan. */
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

static struct rpx_ring ring;
static struct rpx_drv drv;
static struct rpx_dev dev;
static struct rpx_drv_slot *slots;
static uint32_t *seen;
static uint8_t *bufs, *readonly;
static struct rpx_region regions[2];
static const struct rpx_mem mem = { regions, 2 };

static void unmake(void)
{
	free(ring.desc);
	free(ring.avail);
	free(ring.used);
	free(slots);
	free(seen);
	free(bufs);
	free(readonly);
}

/* A fresh ring with both ends on it; free-running indices begin at `start`. */
static void make_at(uint32_t num, bool swap, bool event_idx, bool indirect, uint16_t start)
{
	unmake();
	slots = xalloc(num * sizeof *slots);
	seen = xalloc(num * sizeof *seen);
	bufs = xalloc((size_t)NUM_MAX * BUF);
	readonly = xalloc(BUF);
	regions[0] = (struct rpx_region){ bufs, ADDR, NUM_MAX * BUF, RPX_PERM_READ | RPX_PERM_WRITE };
	regions[1] = (struct rpx_region){ readonly, ADDR_RO, BUF, RPX_PERM_READ };
	if (rpx_ring_init(&ring, xalloc(16u * num), xalloc(6u + 2u * num), xalloc(6u + 8u * num), num, RPX_ORDER_SMP,
			  swap) != 0)
		abort();
	ring.event_idx = event_idx;
	ring.indirect = indirect;
	rpx_put16(rpx_ring_w16(ring.avail, RPX_RING_IDX), start, swap);
	rpx_put16(rpx_ring_w16(ring.used, RPX_RING_IDX), start, swap);
	rpx_put16(rpx_ring_used_event(&ring), start, swap);
	rpx_put16(rpx_ring_avail_event(&ring), start, swap);
	rpx_drv_init(&drv, &ring, slots);
	drv.avail_idx = drv.avail_pub = drv.last_used = drv.used_seen = start;
	rpx_dev_init(&dev, &ring, seen, start, start);
}

static void make(uint32_t num)
{
	make_at(num, false, false, true, 0);
}

static uint64_t addr_of(uint32_t i)
{
	return ADDR + (uint64_t)i * BUF;
}

/* What the peer's side of shared memory is made to say. */
static void set_avail_idx(uint16_t v) { rpx_put16(rpx_ring_w16(ring.avail, RPX_RING_IDX), v, ring.swap); }
static void set_used_idx(uint16_t v) { rpx_put16(rpx_ring_w16(ring.used, RPX_RING_IDX), v, ring.swap); }
static void set_avail(uint16_t at, uint16_t head) { rpx_put16(rpx_ring_avail_entry(&ring, at), head, ring.swap); }

static void set_used(uint16_t at, uint32_t id, uint32_t len)
{
	rpx_put32(&rpx_ring_used_entry(&ring, at)->id, id, ring.swap);
	rpx_put32(&rpx_ring_used_entry(&ring, at)->len, len, ring.swap);
}

static void put_desc(struct rpx_desc *d, uint64_t addr, uint32_t len, uint32_t flags, uint32_t next)
{
	rpx_put64(&d->addr, addr, ring.swap);
	rpx_put32(&d->len, len, ring.swap);
	rpx_put16(&d->flags, (uint16_t)flags, ring.swap);
	rpx_put16(&d->next, (uint16_t)next, ring.swap);
}

static void set_desc(uint32_t i, uint64_t addr, uint32_t len, uint32_t flags, uint32_t next)
{
	put_desc(rpx_ring_desc(&ring, i), addr, len, flags, next);
}

static bool drv_stuck(int e)
{
	static struct rpx_desc table;
	struct rpx_used used;
	struct rpx_sg sg = { ADDR, 4 };
	return drv.broken == e && rpx_drv_get(&drv, &used) == e && rpx_drv_add1(&drv, ADDR, 4, false, 0) == e &&
	       rpx_drv_add(&drv, &sg, 1, 0, 0) == e && rpx_drv_add_indirect(&drv, &table, 0, &sg, 1, 0, 0) == e &&
	       !rpx_drv_publish(&drv) && (rpx_drv_init(&drv, &ring, slots), drv.broken == 0) &&
	       rpx_drv_add1(&drv, ADDR, 4, false, 0) == 0;
}

static bool dev_stuck(int e)
{
	uint16_t head;
	struct rpx_chain c;
	struct rpx_seg seg;
	set_avail_idx(0);
	rpx_chain_begin(&c, &dev, 0, UINT32_MAX);
	if (rpx_dev_single(&dev, &mem, 0, &seg) != e || rpx_chain_next(&c, &dev, &mem, &seg) != e)
		return false;
	return dev.broken == e && rpx_dev_pop(&dev, &head) == e && rpx_dev_push(&dev, 0, 0) == e &&
	       !rpx_dev_publish(&dev) && (rpx_dev_init(&dev, &ring, seen, 0, 0), dev.broken == 0) &&
	       rpx_dev_pop(&dev, &head) == 0;
}

/* The driver offers what stands in descriptor `head`; the device pops it. */
static int offer(uint16_t head)
{
	uint16_t h;
	set_avail(dev.last_avail, head);
	set_avail_idx((uint16_t)(dev.last_avail + 1));
	return rpx_dev_pop(&dev, &h);
}

/* Walk the chain at `head` to its end with a byte budget: its elements, or the rule it broke. */
static int walk(uint16_t head, uint32_t budget)
{
	struct rpx_chain c;
	struct rpx_seg seg;
	int rc, n = 0;
	rpx_chain_begin(&c, &dev, head, budget);
	while ((rc = rpx_chain_next(&c, &dev, &mem, &seg)) == 1) {
		memset(seg.ptr, n, seg.write ? seg.len : 0);
		n++;
	}
	return rc < 0 ? rc : n;
}

static int offer_and_walk(uint16_t head)
{
	return offer(head) == 1 ? walk(head, UINT32_MAX) : 999;
}

static int offer_and_single(uint16_t head)
{
	struct rpx_seg seg;
	return offer(head) == 1 ? rpx_dev_single(&dev, &mem, head, &seg) : 999;
}

/* ------------------------------------------------------------------------------------------ base and endian ---- */

static void need_event_is_its_definition(void)
{
	static const uint32_t lengths[] = { 0, 1, 2, 3, 4, 7, 16, 255, 256, 257, 4096, 32767, 32768 };
	static bool in_window[65536];
	for (uint32_t old = 0; old < 65536 + 5; old += old < 4 ? 1 : 4093) {
		for (size_t k = 0; k < sizeof lengths / sizeof *lengths; k++) {
			memset(in_window, 0, sizeof in_window);
			for (uint32_t i = 0; i < lengths[k]; i++)
				in_window[(old + i) & 0xffffu] = true;
			for (uint32_t event = 0; event < 65536; event++)
				CHECK(rpx_need_event((uint16_t)event, (uint16_t)(old + lengths[k]), (uint16_t)old) ==
				      in_window[event]);
		}
	}
}

static void idx_diff_wraps(void)
{
	CHECK(rpx_idx_diff(3, 65534) == 5);
	CHECK(rpx_idx_diff(0, 1) == 65535);
	CHECK(rpx_idx_diff(32768, 0) == 32768);
}

static void errors_have_rules_and_texts(void)
{
#define RPX_X(name, rule, text) \
	CHECK(RPX_E_##name < 0 && RPX_E_##name == -1 - RPX_ORD_##name); \
	CHECK(strcmp(rpx_error_rule(RPX_E_##name), rule) == 0 && strcmp(rpx_error_text(RPX_E_##name), text) == 0);
	RPX_ERRORS(RPX_X)
#undef RPX_X
	CHECK(strcmp(rpx_error_rule(1), "") == 0 && strcmp(rpx_error_text(-1000), "unknown error") == 0);
}

static void swap_reverses_bytes(void)
{
	union { struct rpx_w16 w16; struct rpx_w32 w32; struct rpx_w64 w64; uint8_t bytes[8]; } native, swapped;
	rpx_put16(&native.w16, 0x0102, false);
	rpx_put16(&swapped.w16, 0x0102, true);
	CHECK(native.bytes[0] == swapped.bytes[1] && native.bytes[1] == swapped.bytes[0] && native.bytes[0] != swapped.bytes[0]);
	CHECK(rpx_get16(&swapped.w16, true) == 0x0102 && rpx_get16(&swapped.w16, false) == 0x0201);
	rpx_put32(&native.w32, 0x01020304, false);
	rpx_put32(&swapped.w32, 0x01020304, true);
	for (int i = 0; i < 4; i++)
		CHECK(native.bytes[i] == swapped.bytes[3 - i]);
	CHECK(rpx_get32(&swapped.w32, true) == 0x01020304);
	rpx_put64(&native.w64, 0x0102030405060708u, false);
	rpx_put64(&swapped.w64, 0x0102030405060708u, true);
	for (int i = 0; i < 8; i++)
		CHECK(native.bytes[i] == swapped.bytes[7 - i]);
	CHECK(rpx_get64(&swapped.w64, true) == 0x0102030405060708u && rpx_get64(&native.w64, false) == 0x0102030405060708u);
	CHECK(RPX_BIG_ENDIAN ? native.bytes[0] == 1 : native.bytes[0] == 8);
	rpx_put16_release(&swapped.w16, 0xabcd, true, RPX_ORDER_SMP);
	CHECK(rpx_get16_acquire(&swapped.w16, true, RPX_ORDER_SMP) == 0xabcd);
	rpx_put16_release(&swapped.w16, 0x1234, true, RPX_ORDER_DEVICE);
	CHECK(rpx_get16_acquire(&swapped.w16, true, RPX_ORDER_DEVICE) == 0x1234);
}

/* ---------------------------------------------------------------------------------------------------- memory ---- */

static void mem_at_bounds(void)
{
	uint8_t bytes[64];
	struct rpx_region r[3] = {
		{ bytes, 0x1000, 32, RPX_PERM_READ },
		{ bytes + 32, 0x1020, 16, RPX_PERM_READ | RPX_PERM_WRITE },
		{ bytes + 48, UINT64_MAX - 15, 16, RPX_PERM_WRITE }, /* ends at 2^64 */
	};
	struct rpx_mem m = { r, 3 };
	CHECK(rpx_mem_at(&m, 0x1000, 32, RPX_PERM_READ) == bytes);
	CHECK(rpx_mem_at(&m, 0x101f, 1, RPX_PERM_READ) == bytes + 31);
	CHECK(rpx_mem_at(&m, 0x1000, 33, RPX_PERM_READ) == NULL);
	CHECK(rpx_mem_at(&m, 0x101f, 2, RPX_PERM_READ) == NULL); /* straddles two regions, however adjacent */
	CHECK(rpx_mem_at(&m, 0xfff, 1, RPX_PERM_READ) == NULL);
	CHECK(rpx_mem_at(&m, 0xfff, 2, RPX_PERM_READ) == NULL);
	CHECK(rpx_mem_at(&m, 0x1030, 1, RPX_PERM_READ) == NULL);
	CHECK(rpx_mem_at(&m, 0x1000, 1, RPX_PERM_WRITE) == NULL);
	CHECK(rpx_mem_at(&m, 0x1000, 1, RPX_PERM_READ | RPX_PERM_WRITE) == NULL);
	CHECK(rpx_mem_at(&m, 0x1020, 16, RPX_PERM_READ | RPX_PERM_WRITE) == bytes + 32);
	CHECK(rpx_mem_at(&m, UINT64_MAX, 1, RPX_PERM_WRITE) == bytes + 63);
	CHECK(rpx_mem_at(&m, UINT64_MAX, 2, RPX_PERM_WRITE) == NULL); /* addr + len wraps */
	CHECK(rpx_mem_at(&m, UINT64_MAX - 15, 17, RPX_PERM_WRITE) == NULL);
	CHECK(rpx_mem_at(&m, 0x1001, UINT64_MAX, RPX_PERM_READ) == NULL);
	CHECK(rpx_mem_at(&m, 0x1001, UINT64_MAX - 0x1000, RPX_PERM_READ) == NULL);
	CHECK(rpx_mem_at(&m, 0, UINT64_MAX, RPX_PERM_READ) == NULL);
	m.count = 0;
	CHECK(rpx_mem_at(&m, 0x1000, 1, RPX_PERM_READ) == NULL);
}

/* Every alignment and length, with what lies around untouched; the widths themselves are UBSan's to judge. */
static void device_copies(void)
{
	static _Alignas(8) uint8_t from[64], to[64];
	for (uint32_t i = 0; i < sizeof from; i++)
		from[i] = (uint8_t)(i + 1);
	for (uint32_t a = 0; a < 8; a++) {
		for (uint32_t b = 0; b < 8; b++) {
			for (uint32_t n = 0; n < 40; n++) {
				for (int way = 0; way < 3; way++) {
					memset(to, 0xee, sizeof to);
					if (way == 0)
						rpx_copy_from(to + a, from + b, n, RPX_KIND_DEVICE);
					else if (way == 1)
						rpx_copy_to(to + a, from + b, n, RPX_KIND_DEVICE);
					else
						rpx_copy_loop(to + a, from + b, n);
					CHECK(memcmp(to + a, from + b, n) == 0);
					for (uint32_t i = 0; i < sizeof to; i++)
						CHECK((i >= a && i < a + n) || to[i] == 0xee);
				}
			}
		}
		for (uint32_t n = 0; n < 40; n++) {
			memset(to, 0xee, sizeof to);
			rpx_zero(to + a, n);
			for (uint32_t i = 0; i < sizeof to; i++)
				CHECK(to[i] == (i >= a && i < a + n ? 0 : 0xee));
		}
	}
	CHECK(rpx_kind_order(RPX_KIND_CACHED) == RPX_ORDER_SMP);
	CHECK(rpx_kind_order(RPX_KIND_UNCACHED) == RPX_ORDER_DEVICE && rpx_kind_order(RPX_KIND_DEVICE) == RPX_ORDER_DEVICE);
}

/* ------------------------------------------------------------------------------------------------- the layout ---- */

static void legacy_layout(void)
{
	/* Known values: the kernel's vring_size(), num 256 align 4096 and num 16 align 16. */
	CHECK(rpx_ring_used_offset(256, 4096) == 8192 && rpx_ring_bytes(256, 4096) == 8192 + 6 + 2048);
	CHECK(rpx_ring_used_offset(16, 16) == 304 && rpx_ring_bytes(16, 16) == 304 + 6 + 128);
	CHECK(rpx_ring_used_offset(1, 4) == 24);
	uint8_t *base = xalloc(rpx_ring_bytes(16, 64));
	struct rpx_ring r;
	int rc = rpx_ring_init_legacy(&r, base, 16, 64, RPX_ORDER_SMP, false);
	bool placed = rc == 0 && r.desc == base && r.avail == base + 256 && r.used == base + 320;
	bool refused = true;
	memset(base, 0xff, rpx_ring_bytes(16, 64));
	rpx_ring_zero(&r);
	bool zero = base[0] == 0 && base[256] == 0 && base[320] == 0 && base[rpx_ring_bytes(16, 64) - 1] == 0 &&
		    base[rpx_ring_used_offset(16, 64) - 1] == 0xff; /* the padding is nobody's */
	static const uint32_t bad[][2] = { { 0, 4 }, { 3, 4 }, { 65536, 4 }, { 16, 0 }, { 16, 2 }, { 16, 24 }, { 16, 1u << 31 } };
	for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
		refused = refused && rpx_ring_init_legacy(&r, base, bad[i][0], bad[i][1], RPX_ORDER_SMP, false) == RPX_E_INVAL;
	free(base);
	CHECK(placed && zero && refused);
}

static void ring_init_refuses(void)
{
	static _Alignas(16) uint8_t b[256];
	struct rpx_ring r;
	static const uint32_t bad[] = { 0, 3, 5, 6, 48, 32769, 65536, 0x80000000u, UINT32_MAX };
	for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
		CHECK(rpx_ring_init(&r, b, b + 64, b + 128, bad[i], RPX_ORDER_SMP, false) == RPX_E_INVAL);
	CHECK(rpx_ring_init(&r, b + 8, b + 64, b + 128, 2, RPX_ORDER_SMP, false) == RPX_E_INVAL);
	CHECK(rpx_ring_init(&r, b, b + 65, b + 128, 2, RPX_ORDER_SMP, false) == RPX_E_INVAL);
	CHECK(rpx_ring_init(&r, b, b + 64, b + 130, 2, RPX_ORDER_SMP, false) == RPX_E_INVAL);
	CHECK(rpx_ring_init(&r, b, b + 66, b + 132, 2, RPX_ORDER_SMP, false) == 0);
	CHECK(rpx_ring_init(&r, b, b + 64, b + 128, 32768, RPX_ORDER_SMP, false) == 0 && r.num == 32768);
}

/* ------------------------------------------------------------------------------------------- the round trip ---- */

static void round_trip(uint32_t num, bool swap, bool event_idx, uint16_t start, uint32_t count)
{
	make_at(num, swap, event_idx, true, start);
	for (uint32_t i = 0; i < count; i++) {
		struct rpx_used used;
		struct rpx_seg seg;
		uint16_t head;
		CHECK(rpx_drv_add1(&drv, addr_of(i % NUM_MAX), 8, (i & 1) != 0, i) == 0);
		CHECK(rpx_dev_pop(&dev, &head) == 0); /* staged is not published */
		rpx_drv_publish(&drv);
		CHECK(rpx_get16(rpx_ring_w16(ring.avail, RPX_RING_IDX), swap) == (uint16_t)(start + i + 1));
		CHECK(rpx_dev_pop(&dev, &head) == 1 && rpx_dev_pop(&dev, &head) == 0);
		CHECK(rpx_dev_single(&dev, &mem, head, &seg) == 1);
		CHECK(seg.ptr == bufs + i % NUM_MAX * BUF && seg.len == 8 && seg.write == ((i & 1) != 0));
		CHECK(rpx_dev_push(&dev, head, i & 7) == 0);
		CHECK(rpx_drv_get(&drv, &used) == 0);
		rpx_dev_publish(&dev);
		CHECK(rpx_get16(rpx_ring_w16(ring.used, RPX_RING_IDX), swap) == (uint16_t)(start + i + 1));
		CHECK(rpx_drv_get(&drv, &used) == 1 && used.cookie == i && used.len == (i & 7));
		CHECK(rpx_drv_get(&drv, &used) == 0);
	}
	CHECK(drv.num_free == num && rpx_drv_in_flight(&drv) == 0 && dev.held == 0);
}

static void indices_wrap(void)
{
	for (uint32_t num = 1; num <= 16; num *= 2)
		for (int f = 0; f < 4; f++)
			round_trip(num, (f & 1) != 0, (f & 2) != 0, 65530, 20);
	round_trip(4, false, false, 0, 70000);
}

/* A full queue in flight across the wrap, in one publication each way. */
static void full_batches_wrap(void)
{
	make_at(4, false, true, true, 65533);
	for (uint32_t round = 0; round < 4; round++) {
		struct rpx_used used;
		uint16_t heads[4];
		for (uint32_t i = 0; i < 4; i++)
			CHECK(rpx_drv_add1(&drv, addr_of(i), 8, false, i) == 0);
		rpx_drv_publish(&drv);
		for (uint32_t i = 0; i < 4; i++)
			CHECK(rpx_dev_pop(&dev, &heads[i]) == 1);
		for (uint32_t i = 4; i-- > 0;)
			CHECK(rpx_dev_push(&dev, heads[i], 0) == 0);
		rpx_dev_publish(&dev);
		for (uint32_t i = 4; i-- > 0;)
			CHECK(rpx_drv_get(&drv, &used) == 1 && used.cookie == i);
		CHECK(rpx_drv_get(&drv, &used) == 0);
	}
}

static void largest_queue(void)
{
	make(32768);
	struct rpx_used used;
	uint16_t head;
	for (uint32_t i = 0; i < 32768; i++)
		CHECK(rpx_drv_add1(&drv, ADDR, 4, false, i) == 0);
	CHECK(rpx_drv_add1(&drv, ADDR, 4, false, 0) == RPX_E_FULL);
	rpx_drv_publish(&drv);
	for (uint32_t i = 0; i < 32768; i++)
		CHECK(rpx_dev_pop(&dev, &head) == 1 && rpx_dev_push(&dev, head, 0) == 0);
	rpx_dev_publish(&dev);
	for (uint32_t i = 0; i < 32768; i++)
		CHECK(rpx_drv_get(&drv, &used) == 1 && used.cookie == i);
	CHECK(drv.num_free == 32768);
}

/* Singles and chains, given back out of order: every descriptor is free again, and none twice. */
static void free_list(void)
{
	make(8);
	struct rpx_sg sg[3] = { { ADDR, 4 }, { ADDR + 4, 4 }, { ADDR + 8, 4 } };
	for (uint32_t round = 0; round < 50; round++) {
		struct rpx_used used;
		uint16_t heads[4], k = 0;
		uint32_t cookies = 0;
		CHECK(rpx_drv_add(&drv, sg, 2, 1, 0) == 0 && rpx_drv_add1(&drv, ADDR, 4, false, 1) == 0);
		CHECK(rpx_drv_add(&drv, sg, 0, 3, 2) == 0);
		CHECK(rpx_drv_add(&drv, sg, 2, 0, 3) == RPX_E_FULL && drv.broken == 0);
		CHECK(rpx_drv_add1(&drv, ADDR, 4, false, 3) == 0 && drv.num_free == 0);
		CHECK(rpx_drv_add1(&drv, ADDR, 4, false, 4) == RPX_E_FULL);
		rpx_drv_publish(&drv);
		while (k < 4 && rpx_dev_pop(&dev, &heads[k]) == 1)
			k++;
		CHECK(k == 4);
		for (uint32_t i = 0; i < 4; i++)
			CHECK(rpx_dev_push(&dev, heads[(i * 3 + round) & 3], 0) == 0);
		rpx_dev_publish(&dev);
		while (rpx_drv_get(&drv, &used) == 1)
			cookies |= 1u << used.cookie;
		CHECK(cookies == 0xf && drv.num_free == 8 && rpx_drv_in_flight(&drv) == 0 && drv.broken == 0);
		bool is_free[8] = { false };
		uint16_t at = drv.free_head;
		for (uint32_t i = 0; i < 8; i++, at = slots[at].next) {
			CHECK(at < 8 && !is_free[at]);
			is_free[at] = true;
		}
	}
}

static void chains_are_walked(void)
{
	make(4);
	struct rpx_sg sg[4] = { { addr_of(0), 10 }, { addr_of(1), 20 }, { addr_of(2), 30 }, { addr_of(3), 40 } };
	static const uint32_t out[] = { 4, 2, 0 };
	for (int indirect = 0; indirect < 2; indirect++) {
		for (size_t k = 0; k < 3; k++) {
			struct rpx_desc *table = (struct rpx_desc *)(void *)(bufs + 8 * BUF);
			struct rpx_chain c;
			struct rpx_seg seg;
			struct rpx_used used;
			uint16_t head;
			if (indirect)
				CHECK(rpx_drv_add_indirect(&drv, table, addr_of(8), sg, out[k], 4 - out[k], 7) == 0);
			else
				CHECK(rpx_drv_add(&drv, sg, out[k], 4 - out[k], 7) == 0);
			CHECK(drv.num_free == (indirect ? 3 : 0));
			rpx_drv_publish(&drv);
			CHECK(rpx_dev_pop(&dev, &head) == 1 && rpx_dev_single(&dev, &mem, head, &seg) == 0);
			rpx_chain_begin(&c, &dev, head, 100);
			for (uint32_t i = 0; i < 4; i++) {
				CHECK(rpx_chain_next(&c, &dev, &mem, &seg) == 1);
				CHECK(seg.ptr == bufs + i * BUF && seg.len == 10 * (i + 1) && seg.write == (i >= out[k]));
			}
			CHECK(rpx_chain_next(&c, &dev, &mem, &seg) == 0 && rpx_chain_next(&c, &dev, &mem, &seg) == 0);
			CHECK(rpx_dev_push(&dev, head, 0) == 0);
			rpx_dev_publish(&dev);
			CHECK(rpx_drv_get(&drv, &used) == 1 && used.cookie == 7);
		}
	}
	/* 2.7.5.3.2-2: some direct elements, then a table; 2.7.5.3.2-1: WRITE on what points at it means nothing. */
	set_desc(0, addr_of(0), 4, RPX_DESC_F_NEXT, 1);
	set_desc(1, addr_of(8), 32, RPX_DESC_F_INDIRECT | RPX_DESC_F_WRITE, 0);
	put_desc((struct rpx_desc *)(void *)(bufs + 8 * BUF), addr_of(1), 4, RPX_DESC_F_NEXT, 1);
	put_desc((struct rpx_desc *)(void *)(bufs + 8 * BUF + 16), addr_of(2), 4, RPX_DESC_F_WRITE, 0);
	CHECK(offer_and_walk(0) == 3);
}

/* 2.7.5.1-3: whatever the device does, the descriptor table stays as the driver wrote it. */
static void device_leaves_descriptors_alone(void)
{
	make(4);
	uint8_t before[64];
	struct rpx_sg sg[2] = { { addr_of(0), 10 }, { addr_of(1), 20 } };
	CHECK(rpx_drv_add(&drv, sg, 1, 1, 0) == 0 && rpx_drv_add1(&drv, ADDR, 4, true, 1) == 0);
	rpx_drv_publish(&drv);
	memcpy(before, ring.desc, sizeof before);
	uint16_t head;
	CHECK(rpx_dev_pop(&dev, &head) == 1 && walk(head, 100) == 2 && rpx_dev_push(&dev, head, 20) == 0);
	CHECK(rpx_dev_pop(&dev, &head) == 1 && rpx_dev_push(&dev, head, 4) == 0);
	rpx_dev_publish(&dev);
	CHECK(memcmp(before, ring.desc, sizeof before) == 0);
}

/* ------------------------------------------------------------------------------------- the caller's mistakes ---- */

static void driver_refuses_bad_chains(void)
{
	make(4);
	struct rpx_sg sg[5] = { { ADDR, 4 }, { ADDR, 4 }, { ADDR, 4 }, { ADDR, 4 }, { ADDR, 4 } };
	struct rpx_desc table[5];
	CHECK(rpx_drv_add(&drv, sg, 0, 0, 0) == RPX_E_INVAL && rpx_drv_add(&drv, sg, 3, 2, 0) == RPX_E_INVAL);
	CHECK(rpx_drv_add(&drv, sg, UINT32_MAX, 2, 0) == RPX_E_INVAL); /* the sum wraps to 1 */
	CHECK(rpx_drv_add(&drv, sg, 2, UINT32_MAX, 0) == RPX_E_INVAL);
	CHECK(rpx_drv_add_indirect(&drv, table, ADDR, sg, 3, 2, 0) == RPX_E_INVAL);
	CHECK(rpx_drv_add_indirect(&drv, table, ADDR, sg, 0, 0, 0) == RPX_E_INVAL);
	CHECK(rpx_drv_add_indirect(&drv, table, ADDR, sg, UINT32_MAX, 2, 0) == RPX_E_INVAL);
	sg[1].len = 0;
	CHECK(rpx_drv_add(&drv, sg, 2, 0, 0) == RPX_E_INVAL && rpx_drv_add_indirect(&drv, table, ADDR, sg, 1, 1, 0) == RPX_E_INVAL);
	sg[1].len = 4;
	drv.ring.indirect = false;
	CHECK(rpx_drv_add_indirect(&drv, table, ADDR, sg, 1, 1, 0) == RPX_E_INVAL);
	CHECK(drv.broken == 0 && drv.num_free == 4 && rpx_drv_in_flight(&drv) == 0 && drv.avail_idx == 0);
	raised[RPX_ORD_INVAL] = raised[RPX_ORD_FULL] = true;
}

static void limit_near_4_gib(void)
{
	struct rpx_sg sg[3] = { { 0, UINT32_MAX }, { 0, 1 }, { 0, UINT32_MAX - 1 } };
	uint32_t limit = 0;
	CHECK(rpx_drv_limit(sg, 1, 0, &limit) == 0 && limit == UINT32_MAX);
	CHECK(rpx_drv_limit(sg, 0, 1, &limit) == 0 && limit == UINT32_MAX);
	CHECK(rpx_drv_limit(sg, 1, 1, &limit) == RPX_E_INVAL && rpx_drv_limit(sg, 2, 0, &limit) == RPX_E_INVAL);
	CHECK(rpx_drv_limit(sg, 0, 3, &limit) == RPX_E_INVAL); /* the 32-bit sum would be UINT32_MAX - 1 again */
	CHECK(rpx_drv_limit(sg + 1, 2, 0, &limit) == 0 && limit == UINT32_MAX);
	CHECK(rpx_drv_limit(sg + 1, 1, 1, &limit) == 0 && limit == UINT32_MAX - 1); /* the writable part alone */
}

static void push_refuses_what_was_not_popped(void)
{
	make(4);
	uint16_t head;
	CHECK(rpx_dev_push(&dev, 0, 0) == RPX_E_INVAL && rpx_dev_push(&dev, 4, 0) == RPX_E_INVAL &&
	      rpx_dev_push(&dev, 0xffff, 0) == RPX_E_INVAL);
	CHECK(rpx_drv_add1(&drv, ADDR, 4, false, 0) == 0);
	rpx_drv_publish(&drv);
	CHECK(rpx_dev_pop(&dev, &head) == 1 && rpx_dev_push(&dev, head, 0) == 0 && rpx_dev_push(&dev, head, 0) == RPX_E_INVAL);
	CHECK(dev.broken == 0 && dev.used_idx == 1);
}

/* ----------------------------------------------------------------------------- a hostile device, a good driver ---- */

static void driver_checks_used_idx(void)
{
	struct rpx_used used;
	static const uint16_t bad[] = { 3, 4, 5, 32768, 65535 }; /* 2 are published, a third only staged */
	for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
		make(4);
		CHECK(rpx_drv_add1(&drv, ADDR, 4, false, 0) == 0 && rpx_drv_add1(&drv, ADDR, 4, false, 1) == 0);
		rpx_drv_publish(&drv);
		CHECK(rpx_drv_add1(&drv, ADDR, 4, false, 2) == 0);
		set_used_idx(bad[i]);
		BREAKS_DRV(rpx_drv_get(&drv, &used), USED_IDX);
	}
	make(4); /* backwards */
	CHECK(rpx_drv_add1(&drv, ADDR, 4, false, 0) == 0 && rpx_drv_add1(&drv, ADDR, 4, false, 1) == 0);
	rpx_drv_publish(&drv);
	set_used(0, 0, 0);
	set_used_idx(1);
	CHECK(rpx_drv_get(&drv, &used) == 1);
	set_used_idx(0);
	BREAKS_DRV(rpx_drv_get(&drv, &used), USED_IDX);
}

static void driver_checks_used_id(void)
{
	static const uint32_t bad[] = { 4, 0xffff, 0x10000, 0x10001, UINT32_MAX }; /* the upper half counts */
	for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
		struct rpx_used used;
		make(4);
		CHECK(rpx_drv_add1(&drv, ADDR, 4, false, 0) == 0);
		rpx_drv_publish(&drv);
		set_used(0, bad[i], 0);
		set_used_idx(1);
		BREAKS_DRV(rpx_drv_get(&drv, &used), USED_ID);
	}
}

static void driver_checks_used_idle(void)
{
	struct rpx_sg sg[2] = { { ADDR, 4 }, { ADDR, 4 } };
	for (uint32_t id = 1; id < 4; id++) { /* the middle of the chain, and two that are free */
		struct rpx_used used;
		make(4);
		CHECK(rpx_drv_add(&drv, sg, 2, 0, 0) == 0);
		rpx_drv_publish(&drv);
		set_used(0, id, 0);
		set_used_idx(1);
		BREAKS_DRV(rpx_drv_get(&drv, &used), USED_IDLE);
	}
	struct rpx_used used; /* the same one twice */
	make(4);
	CHECK(rpx_drv_add1(&drv, ADDR, 4, false, 0) == 0 && rpx_drv_add1(&drv, ADDR, 4, false, 1) == 0);
	rpx_drv_publish(&drv);
	set_used(0, 1, 0);
	set_used(1, 1, 0);
	set_used_idx(2);
	CHECK(rpx_drv_get(&drv, &used) == 1 && used.cookie == 1);
	BREAKS_DRV(rpx_drv_get(&drv, &used), USED_IDLE);
}

/* used.len: up to the bytes that could be written; up to the whole where none could (OpenAMP says so). */
static void driver_checks_used_len(void)
{
	struct rpx_sg sg[3] = { { ADDR, 30 }, { ADDR, 20 }, { ADDR, 5 } };
	static const struct { uint32_t out, in, most; } cases[] = { { 1, 2, 25 }, { 0, 3, 55 }, { 3, 0, 55 }, { 2, 1, 5 } };
	for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
		for (int indirect = 0; indirect < 2; indirect++) {
			for (uint32_t over = 0; over < 2; over++) {
				struct rpx_used used;
				struct rpx_desc table[3];
				make(4);
				if (indirect)
					CHECK(rpx_drv_add_indirect(&drv, table, ADDR, sg, cases[k].out, cases[k].in, 9) == 0);
				else
					CHECK(rpx_drv_add(&drv, sg, cases[k].out, cases[k].in, 9) == 0);
				rpx_drv_publish(&drv);
				set_used(0, 0, cases[k].most + over);
				set_used_idx(1);
				if (over)
					BREAKS_DRV(rpx_drv_get(&drv, &used), USED_LEN);
				else
					CHECK(rpx_drv_get(&drv, &used) == 1 && used.len == cases[k].most);
			}
		}
	}
	struct rpx_used used;
	make(2);
	CHECK(rpx_drv_add1(&drv, ADDR, 64, true, 0) == 0);
	rpx_drv_publish(&drv);
	set_used(0, 0, UINT32_MAX);
	set_used_idx(1);
	BREAKS_DRV(rpx_drv_get(&drv, &used), USED_LEN);
}

/* ----------------------------------------------------------------------------- a hostile driver, a good device ---- */

static void device_checks_avail_idx(void)
{
	uint16_t head;
	static const uint16_t bad[] = { 5, 6, 32768, 65535 };
	for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
		make(4);
		set_avail_idx(bad[i]);
		BREAKS_DEV(rpx_dev_pop(&dev, &head), AVAIL_IDX);
	}
	make(4); /* two are held: at most two more can be available */
	for (uint16_t i = 0; i < 4; i++)
		set_avail(i, i);
	set_avail_idx(2);
	CHECK(rpx_dev_pop(&dev, &head) == 1 && rpx_dev_pop(&dev, &head) == 1);
	set_avail_idx(5);
	BREAKS_DEV(rpx_dev_pop(&dev, &head), AVAIL_IDX);
	make(4); /* backwards */
	set_avail_idx(1);
	CHECK(rpx_dev_pop(&dev, &head) == 1 && rpx_dev_push(&dev, head, 0) == 0);
	rpx_dev_publish(&dev);
	set_avail_idx(0);
	BREAKS_DEV(rpx_dev_pop(&dev, &head), AVAIL_IDX);
	make(4); /* given back, but not published yet: the driver cannot know */
	for (uint16_t i = 0; i < 4; i++)
		set_avail(i, i);
	set_avail_idx(4);
	for (uint16_t i = 0; i < 4; i++)
		CHECK(rpx_dev_pop(&dev, &head) == 1 && rpx_dev_push(&dev, head, 0) == 0);
	set_avail_idx(5);
	BREAKS_DEV(rpx_dev_pop(&dev, &head), AVAIL_IDX);
	make(4); /* a full queue is fine */
	for (uint16_t i = 0; i < 4; i++)
		set_avail(i, i);
	set_avail_idx(4);
	for (uint16_t i = 0; i < 4; i++)
		CHECK(rpx_dev_pop(&dev, &head) == 1 && head == i);
}

static void device_checks_avail_head(void)
{
	static const uint16_t bad[] = { 4, 5, 0x8000, 0xffff };
	for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
		make(4);
		BREAKS_DEV(offer(bad[i]), AVAIL_HEAD);
	}
}

static void device_checks_duplicates(void)
{
	uint16_t head;
	make(4); /* while it is held */
	CHECK(offer(2) == 1);
	BREAKS_DEV(offer(2), AVAIL_TWICE);
	make(4); /* given back, but named twice under one value of avail.idx */
	set_avail(0, 2);
	set_avail(1, 2);
	set_avail_idx(2);
	CHECK(rpx_dev_pop(&dev, &head) == 1 && rpx_dev_push(&dev, head, 0) == 0);
	rpx_dev_publish(&dev);
	BREAKS_DEV(rpx_dev_pop(&dev, &head), AVAIL_TWICE);
	make(4); /* given back and offered again later: as it should be */
	for (int i = 0; i < 10; i++) {
		CHECK(offer(2) == 1 && rpx_dev_push(&dev, 2, 0) == 0);
		rpx_dev_publish(&dev);
	}
}

/* The counter of looks wraps: marks of old looks do not come back, what is held stays held. */
static void look_counter_wraps(void)
{
	make(4);
	CHECK(offer(3) == 1); /* held for long */
	uint32_t first = dev.look;
	CHECK(offer(1) == 1 && rpx_dev_push(&dev, 1, 0) == 0);
	rpx_dev_publish(&dev);
	uint32_t marked = seen[1];
	dev.look = 0xfffffffau;
	for (int i = 0; i < 8; i++) {
		CHECK(offer(2) == 1 && rpx_dev_push(&dev, 2, 0) == 0);
		rpx_dev_publish(&dev);
	}
	CHECK(dev.look < 16 && first < marked);
	dev.look = marked - 1; /* the next look has the number under which head 1 was seen before the wrap */
	CHECK(offer(1) == 1);
	BREAKS_DEV(offer(3), AVAIL_TWICE);
}

static void device_checks_desc_addr(void)
{
	static const uint64_t bad[] = { 0, ADDR - 1, ADDR + NUM_MAX * BUF - 3, ADDR + NUM_MAX * BUF, UINT64_MAX - 2, UINT64_MAX };
	for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
		make(4);
		set_desc(1, bad[i], 4, 0, 0);
		BREAKS_DEV(offer_and_single(1), DESC_ADDR);
		make(4);
		set_desc(1, bad[i], 4, 0, 0);
		BREAKS_DEV(offer_and_walk(1), DESC_ADDR);
	}
	make(4); /* a device-writable buffer where nothing may be written */
	set_desc(0, ADDR_RO, 4, 0, 0);
	CHECK(offer_and_single(0) == 1);
	set_desc(1, ADDR_RO, 4, RPX_DESC_F_WRITE, 0);
	BREAKS_DEV(offer_and_single(1), DESC_ADDR);
	make(4);
	set_desc(1, ADDR, UINT32_MAX, 0, 0);
	BREAKS_DEV(offer_and_single(1), DESC_ADDR);
	make(4);
	set_desc(1, ADDR, NUM_MAX * BUF + 1, 0, 0);
	BREAKS_DEV(offer_and_single(1), DESC_ADDR);
	make(4);
	set_desc(1, ADDR, NUM_MAX * BUF, 0, 0);
	CHECK(offer_and_single(1) == 1);
}

static void device_checks_desc_len(void)
{
	make(4);
	set_desc(1, ADDR, 0, 0, 0);
	BREAKS_DEV(offer_and_single(1), DESC_LEN);
	set_desc(1, ADDR, 4, RPX_DESC_F_NEXT, 2);
	set_desc(2, ADDR, 0, 0, 0);
	make(4);
	set_desc(1, ADDR, 4, RPX_DESC_F_NEXT, 2);
	set_desc(2, ADDR, 0, 0, 0);
	BREAKS_DEV(offer_and_walk(1), DESC_LEN);
}

static void device_checks_chain_order(void)
{
	make(4);
	set_desc(0, ADDR, 4, RPX_DESC_F_NEXT | RPX_DESC_F_WRITE, 1);
	set_desc(1, ADDR, 4, 0, 0);
	BREAKS_DEV(offer_and_walk(0), DESC_ORDER);
}

static void device_checks_chain_next(void)
{
	static const uint16_t bad[] = { 4, 5, 0xffff };
	for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
		make(4);
		set_desc(0, ADDR, 4, RPX_DESC_F_NEXT, bad[i]);
		BREAKS_DEV(offer_and_walk(0), CHAIN_NEXT);
		make(4); /* in an indirect table the limit is the table's */
		set_desc(0, addr_of(8), 32, RPX_DESC_F_INDIRECT, 0);
		put_desc((struct rpx_desc *)(void *)(bufs + 8 * BUF), ADDR, 4, RPX_DESC_F_NEXT, bad[i] - 2u);
		BREAKS_DEV(offer_and_walk(0), CHAIN_NEXT);
	}
}

static void device_checks_chain_steps(void)
{
	make(4); /* a loop */
	set_desc(0, ADDR, 4, RPX_DESC_F_NEXT, 1);
	set_desc(1, ADDR, 4, RPX_DESC_F_NEXT, 0);
	BREAKS_DEV(offer_and_walk(0), CHAIN_STEPS);
	for (uint32_t n = 2; n <= 3; n++) { /* an indirect chain of the queue's size, and one more */
		make(2);
		struct rpx_desc *table = (struct rpx_desc *)(void *)(bufs + 8 * BUF);
		set_desc(0, addr_of(8), 16 * n, RPX_DESC_F_INDIRECT, 0);
		for (uint32_t i = 0; i < n; i++)
			put_desc(&table[i], ADDR, 4, i + 1 < n ? RPX_DESC_F_NEXT : 0, i + 1);
		if (n == 2)
			CHECK(offer_and_walk(0) == 2);
		else
			BREAKS_DEV(offer_and_walk(0), CHAIN_STEPS);
	}
}

static void device_checks_chain_bytes(void)
{
	for (uint32_t budget = 7; budget <= 8; budget++) {
		make(4);
		set_desc(0, ADDR, 4, RPX_DESC_F_NEXT, 1);
		set_desc(1, ADDR, 4, 0, 0);
		CHECK(offer(0) == 1);
		if (budget == 8)
			CHECK(walk(0, budget) == 2);
		else
			BREAKS_DEV(walk(0, budget), CHAIN_BYTES);
	}
}

static void device_checks_indirect(void)
{
	make_at(4, false, false, false, 0);
	set_desc(0, addr_of(8), 16, RPX_DESC_F_INDIRECT, 0);
	BREAKS_DEV(offer_and_walk(0), INDIRECT_OFF);

	make(4);
	set_desc(0, addr_of(8), 16, RPX_DESC_F_INDIRECT | RPX_DESC_F_NEXT, 1);
	BREAKS_DEV(offer_and_walk(0), INDIRECT_NEXT);

	static const uint32_t bad[] = { 0, 1, 15, 17, 24, 0xffffffffu };
	for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
		make(4);
		set_desc(0, addr_of(8), bad[i], RPX_DESC_F_INDIRECT, 0);
		BREAKS_DEV(offer_and_walk(0), INDIRECT_LEN);
	}
	static const uint64_t outside[] = { ADDR - 16, ADDR + NUM_MAX * BUF - 8, ADDR + 4, UINT64_MAX - 15 };
	for (size_t i = 0; i < sizeof outside / sizeof *outside; i++) { /* the third is not aligned */
		make(4);
		put_desc((struct rpx_desc *)(void *)(bufs), addr_of(1), 4, 0, 0);
		set_desc(0, outside[i], 16, RPX_DESC_F_INDIRECT, 0);
		BREAKS_DEV(offer_and_walk(0), DESC_ADDR);
	}
	make(4); /* nested: as the table's first entry */
	struct rpx_desc *table = (struct rpx_desc *)(void *)(bufs + 8 * BUF);
	set_desc(0, addr_of(8), 16, RPX_DESC_F_INDIRECT, 0);
	put_desc(&table[0], addr_of(9), 16, RPX_DESC_F_INDIRECT, 0);
	put_desc((struct rpx_desc *)(void *)(bufs + 9 * BUF), addr_of(1), 4, 0, 0);
	BREAKS_DEV(offer_and_walk(0), INDIRECT_NESTED);
	make(4); /* and as a later one */
	table = (struct rpx_desc *)(void *)(bufs + 8 * BUF);
	set_desc(0, addr_of(8), 32, RPX_DESC_F_INDIRECT, 0);
	put_desc(&table[0], addr_of(1), 4, RPX_DESC_F_NEXT, 1);
	put_desc(&table[1], addr_of(9), 16, RPX_DESC_F_INDIRECT, 0);
	put_desc((struct rpx_desc *)(void *)(bufs + 9 * BUF), addr_of(1), 4, 0, 0);
	BREAKS_DEV(offer_and_walk(0), INDIRECT_NESTED);
}

/* ---------------------------------------------------------------------------------------------- notifications ---- */

static uint16_t avail_flags(void) { return rpx_get16(rpx_ring_w16(ring.avail, RPX_RING_FLAGS), ring.swap); }
static uint16_t used_flags(void) { return rpx_get16(rpx_ring_w16(ring.used, RPX_RING_FLAGS), ring.swap); }

static void notifications_by_flag(void)
{
	make(4);
	uint16_t head;
	struct rpx_used used;
	rpx_put16(rpx_ring_avail_event(&ring), 100, false); /* 2.7.10.1-2, 2.7.7.2-1: thresholds mean nothing */
	rpx_put16(rpx_ring_used_event(&ring), 100, false);
	CHECK(!rpx_drv_publish(&drv) && !rpx_dev_publish(&dev)); /* nothing staged */
	CHECK(rpx_drv_add1(&drv, ADDR, 4, false, 0) == 0 && rpx_drv_publish(&drv)); /* on at first */
	rpx_dev_mute(&dev);
	CHECK(used_flags() == RPX_USED_F_NO_NOTIFY);
	CHECK(rpx_drv_add1(&drv, ADDR, 4, false, 1) == 0 && !rpx_drv_publish(&drv));
	CHECK(rpx_dev_unmute(&dev) && used_flags() == 0); /* two to look at */
	CHECK(rpx_dev_pop(&dev, &head) == 1 && rpx_dev_unmute(&dev));
	CHECK(rpx_dev_pop(&dev, &head) == 1 && !rpx_dev_unmute(&dev));
	CHECK(rpx_drv_add1(&drv, ADDR, 4, false, 2) == 0 && rpx_drv_publish(&drv));

	CHECK(!rpx_drv_unmute(&drv) && rpx_dev_push(&dev, 0, 0) == 0 && rpx_dev_publish(&dev));
	rpx_drv_mute(&drv);
	CHECK(avail_flags() == RPX_AVAIL_F_NO_INTERRUPT);
	CHECK(rpx_dev_push(&dev, 1, 0) == 0 && !rpx_dev_publish(&dev));
	CHECK(rpx_drv_unmute(&drv) && avail_flags() == 0);
	CHECK(rpx_drv_get(&drv, &used) == 1 && rpx_drv_unmute(&drv) && rpx_drv_get(&drv, &used) == 1 && !rpx_drv_unmute(&drv));
}

static void notifications_by_threshold(void)
{
	static const uint16_t starts[] = { 0, 65533, 65535 };
	for (size_t s = 0; s < 3; s++) {
		make_at(8, false, true, false, starts[s]);
		uint16_t head, at = starts[s];
		struct rpx_used used;
		rpx_put16(rpx_ring_w16(ring.used, RPX_RING_FLAGS), RPX_USED_F_NO_NOTIFY, false); /* ignored: 2.7.10.1-5 */
		rpx_put16(rpx_ring_w16(ring.avail, RPX_RING_FLAGS), RPX_AVAIL_F_NO_INTERRUPT, false); /* 2.7.7.2-4 */
		CHECK(rpx_drv_add1(&drv, ADDR, 4, false, 0) == 0 && rpx_drv_publish(&drv)); /* threshold: the first */
		CHECK(rpx_drv_add1(&drv, ADDR, 4, false, 1) == 0 && !rpx_drv_publish(&drv)); /* it was passed before */
		CHECK(rpx_dev_unmute(&dev) && rpx_dev_pop(&dev, &head) == 1 && rpx_dev_pop(&dev, &head) == 1);
		CHECK(!rpx_dev_unmute(&dev));
		CHECK(rpx_get16(rpx_ring_avail_event(&ring), false) == (uint16_t)(at + 2));
		CHECK(rpx_drv_add1(&drv, ADDR, 4, false, 2) == 0 && rpx_drv_add1(&drv, ADDR, 4, false, 3) == 0);
		CHECK(rpx_drv_publish(&drv)); /* in the middle of the batch */
		rpx_dev_mute(&dev);
		CHECK(rpx_drv_add1(&drv, ADDR, 4, false, 4) == 0 && !rpx_drv_publish(&drv));

		CHECK(rpx_dev_push(&dev, 0, 0) == 0 && rpx_dev_publish(&dev));
		CHECK(rpx_dev_push(&dev, 1, 0) == 0 && !rpx_dev_publish(&dev));
		CHECK(rpx_drv_unmute(&drv) && rpx_drv_get(&drv, &used) == 1 && rpx_drv_get(&drv, &used) == 1);
		CHECK(!rpx_drv_unmute(&drv) && rpx_get16(rpx_ring_used_event(&ring), false) == (uint16_t)(at + 2));
		CHECK(rpx_dev_pop(&dev, &head) == 1 && rpx_dev_push(&dev, head, 0) == 0 && rpx_dev_publish(&dev));
		rpx_drv_mute(&drv);
		CHECK(rpx_dev_pop(&dev, &head) == 1 && rpx_dev_push(&dev, head, 0) == 0 && !rpx_dev_publish(&dev));
		/* With EVENT_IDX nobody touches the flags (2.7.7.1-2, 2.7.10.2-2): as they were set above. */
		CHECK(avail_flags() == RPX_AVAIL_F_NO_INTERRUPT && used_flags() == RPX_USED_F_NO_NOTIFY);
	}
}

/* ------------------------------------------------------------------------------------------------------ rpmsg ---- */

static struct rpx_rx rx; /* of one role, */
static struct rpx_tx tx; /* with the other role's other end of the same ring */
static uint32_t spare[2 * NUM_MAX];
static _Alignas(4) uint8_t scratch[100];

static bool packed; /* the link's ring is a packed one: */
static _Alignas(16) uint8_t packed_parts[4 * 16 + 2 * RPX_PACKED_EVENT_BYTES];
static struct rpx_packed_buf packed_bufs[2][4];
static struct rpx_packed packed_drv, packed_dev;

static void make_packed(bool swap)
{
	struct rpx_packed_ring r;
	if (rpx_packed_ring_init(&r, packed_parts, packed_parts + 64, packed_parts + 68, 4, RPX_ORDER_SMP, swap) != 0)
		abort();
	rpx_packed_ring_zero(&r);
	rpx_packed_init(&packed_drv, &r, packed_bufs[0], false, RPX_PACKED_START);
	rpx_packed_init(&packed_dev, &r, packed_bufs[1], true, RPX_PACKED_START);
}

/* One vring: driver sends to device, or device sends to driver, with 4 buffers of BUF bytes. */
static void make_link(bool to_device, bool swap, uint8_t kind)
{
	make_at(4, swap, false, true, 0);
	make_packed(swap);
	struct rpx_pool pool = { bufs, ADDR, BUF, 4 };
	memset(&rx, 0, sizeof rx);
	memset(&tx, 0, sizeof tx);
	rx.swap = tx.swap = swap;
	rx.kind = tx.kind = kind;
	rx.mem = tx.mem = &mem;
	rx.pool = tx.pool = pool;
	rx.scratch = scratch;
	rx.scratch_size = sizeof scratch;
	tx.spare = spare;
	if (packed) {
		*(to_device ? &tx.packed : &rx.packed) = &packed_drv;
		*(to_device ? &rx.packed : &tx.packed) = &packed_dev;
	} else {
		*(to_device ? &tx.drv : &rx.drv) = &drv;
		*(to_device ? &rx.dev : &tx.dev) = &dev;
	}
	if (to_device)
		rpx_tx_start_drv(&tx);
	if (!to_device && (rpx_rx_post(&rx) != 0 || !rpx_rx_publish(&rx)))
		abort();
}

static void send_and_receive(bool to_device, bool swap, uint8_t kind)
{
	make_link(to_device, swap, kind);
	for (uint32_t i = 0; i < 40; i++) {
		struct rpx_txbuf buf;
		struct rpx_msg msg;
		uint8_t out[BUF], in[BUF];
		uint32_t len = i % (BUF - RPX_HDR + 1);
		memset(out, (int)i, sizeof out);
		CHECK(rpx_tx_get(&tx, &buf) == RPX_TX_BUFFER && buf.cap == BUF - RPX_HDR);
		rpx_copy_to(buf.data, out, len, (enum rpx_kind)kind);
		CHECK(rpx_tx_put(&tx, &buf, 1024 + i, 0xfffffff0u - i, len) == 0);
		CHECK(!rpx_rx_pending(&rx) && rpx_rx_next(&rx, &msg) == RPX_RX_EMPTY);
		CHECK(rpx_tx_publish(&tx) && rpx_rx_pending(&rx));
		CHECK(rpx_rx_next(&rx, &msg) == RPX_RX_MESSAGE && msg.src == 1024 + i && msg.dst == 0xfffffff0u - i);
		CHECK(msg.len == len && msg.data == buf.data && !msg.copied && !rpx_rx_pending(&rx));
		rpx_copy_from(in, msg.data, len, (enum rpx_kind)kind);
		CHECK(memcmp(in, out, len) == 0);
		const uint8_t *h = msg.data - RPX_HDR; /* little-endian unless swapped: the kernel's struct rpmsg_hdr */
		CHECK(h[8] == 0 && h[9] == 0 && h[10] == 0 && h[11] == 0 && h[14] == 0 && h[15] == 0);
		CHECK(h[(swap ? 3 : 0) ^ (RPX_BIG_ENDIAN ? 3 : 0)] == (uint8_t)(1024 + i));
		CHECK(h[12 + ((swap ? 1 : 0) ^ (RPX_BIG_ENDIAN ? 1 : 0))] == (uint8_t)len);
		CHECK(rpx_rx_done(&rx, msg.token) == 0 && (!to_device || !rpx_tx_pending(&tx)));
		CHECK(rpx_rx_publish(&rx) && rpx_tx_pending(&tx));
	}
	CHECK(rpx_rx_broken(&rx) == 0 && rpx_tx_broken(&tx) == 0);
}

static void rpmsg_both_ways(void)
{
	for (int f = 0; f < 12; f++)
		send_and_receive((f & 1) != 0, (f & 2) != 0, (uint8_t)(f >> 2));
}

/* Buffers run out and come back; a buffer handed back unsent is the next one got. */
static void rpmsg_buffers_run_out(void)
{
	for (int to_device = 0; to_device < 2; to_device++) {
		make_link(to_device != 0, false, RPX_KIND_CACHED);
		struct rpx_txbuf buf, again;
		struct rpx_msg msg;
		for (int round = 0; round < 3; round++) {
			for (uint32_t i = 0; i < 4; i++) {
				CHECK(rpx_tx_get(&tx, &buf) == RPX_TX_BUFFER);
				rpx_tx_unget(&tx, &buf);
				CHECK(rpx_tx_get(&tx, &again) == RPX_TX_BUFFER && again.token == buf.token && again.data == buf.data);
				CHECK(rpx_tx_put(&tx, &again, 1, 2, i) == 0);
			}
			CHECK(rpx_tx_get(&tx, &buf) == RPX_TX_NONE);
			rpx_tx_publish(&tx);
			for (uint32_t i = 0; i < 4; i++)
				CHECK(rpx_rx_next(&rx, &msg) == RPX_RX_MESSAGE && msg.len == i && rpx_rx_done(&rx, msg.token) == 0);
			CHECK(rpx_rx_next(&rx, &msg) == RPX_RX_EMPTY);
			rpx_rx_publish(&rx);
		}
		CHECK(rpx_tx_get(&tx, &buf) == RPX_TX_BUFFER);
	}
}

static void rpmsg_mutes(void)
{
	for (int to_device = 0; to_device < 2; to_device++) {
		make_link(to_device != 0, false, RPX_KIND_CACHED);
		struct rpx_txbuf buf;
		struct rpx_msg msg;
		rpx_rx_mute(&rx);
		CHECK(rpx_tx_get(&tx, &buf) == 1 && rpx_tx_put(&tx, &buf, 1, 2, 0) == 0 && !rpx_tx_publish(&tx));
		CHECK(rpx_rx_unmute(&rx) && rpx_rx_next(&rx, &msg) == 1 && !rpx_rx_unmute(&rx));
		CHECK(rpx_tx_get(&tx, &buf) == 1 && rpx_tx_put(&tx, &buf, 1, 2, 0) == 0 && rpx_tx_publish(&tx));
		rpx_tx_mute(&tx);
		CHECK(rpx_rx_done(&rx, msg.token) == 0 && !rpx_rx_publish(&rx) && rpx_tx_unmute(&tx));
		CHECK(rpx_rx_next(&rx, &msg) == 1 && rpx_rx_done(&rx, msg.token) == 0 && rpx_rx_publish(&rx));
	}
}

/* A driver that keeps its descriptors: nothing that flies is posted again, nothing out of the table. */
static void kept_descriptors(void)
{
	uint16_t id = 9;
	uint32_t len = 9;
	make(4);
	CHECK(rpx_drv_bind(&drv, 4, ADDR, true) == RPX_E_INVAL && rpx_drv_bind(&drv, 0x10002, ADDR, true) == RPX_E_INVAL);
	CHECK(rpx_drv_bind(&drv, 2, ADDR, true) == 0);
	CHECK(rpx_drv_post(&drv, 4, 4) == RPX_E_INVAL && rpx_drv_post(&drv, 0xffff, 4) == RPX_E_INVAL);
	CHECK(rpx_drv_post(&drv, 2, 0) == RPX_E_INVAL && rpx_drv_in_flight(&drv) == 0);
	CHECK(rpx_drv_post(&drv, 2, 4) == 0 && rpx_drv_post(&drv, 2, 4) == RPX_E_INVAL);
	CHECK(rpx_drv_publish(&drv) && rpx_drv_used(&drv, &id, &len) == 0 && id == 9 && len == 9);
	CHECK(rpx_get64(&rpx_ring_desc(&ring, 2)->addr, ring.swap) == ADDR);
	CHECK(rpx_get32(&rpx_ring_desc(&ring, 2)->len, ring.swap) == 4);
	CHECK(rpx_get16(&rpx_ring_desc(&ring, 2)->flags, ring.swap) == RPX_DESC_F_WRITE);
	set_used(0, 2, 5);
	set_used_idx(1);
	BREAKS_DRV(rpx_drv_used(&drv, &id, &len), USED_LEN);
	make(4);
	CHECK(rpx_drv_bind(&drv, 2, ADDR, true) == 0 && rpx_drv_post(&drv, 2, 4) == 0 && rpx_drv_publish(&drv));
	set_used(0, 2, 3);
	set_used_idx(1);
	CHECK(rpx_drv_used(&drv, &id, &len) == 1 && id == 2 && len == 3 && rpx_drv_in_flight(&drv) == 0);
	CHECK(rpx_drv_post(&drv, 2, 7) == 0 && drv.broken == 0);
	for (uint32_t n = 1; n < 4; n++) { /* longer, as long, and shorter than before: the descriptor says so */
		static const uint32_t lens[] = { 7, 7, 3, 9 };
		CHECK(rpx_get32(&rpx_ring_desc(&ring, 2)->len, ring.swap) == lens[n - 1]);
		rpx_drv_publish(&drv);
		set_used((uint16_t)n, 2, 0);
		set_used_idx((uint16_t)(n + 1));
		CHECK(rpx_drv_used(&drv, &id, &len) == 1 && rpx_drv_post(&drv, 2, lens[n]) == 0);
	}
	CHECK(rpx_get32(&rpx_ring_desc(&ring, 2)->len, ring.swap) == 9);
}

/* Copies of every length, from and to every alignment, touch what they should and nothing else. */
static void copies_of_every_length(void)
{
	static uint8_t from[320], to[320], want[320];
	for (size_t i = 0; i < sizeof from; i++)
		from[i] = (uint8_t)(i * 7 + 1);
	for (size_t n = 0; n <= 260; n++) {
		for (size_t at = 0; at < 20; at++) {
			memset(to, 0xee, sizeof to);
			memset(want, 0xee, sizeof want);
			memcpy(want + at, from + 3, n);
			rpx_copy_to(to + at, from + 3, n, RPX_KIND_CACHED);
			CHECK(memcmp(to, want, sizeof to) == 0);
		}
	}
}

/* Driver's rx: what used.len and hdr.len may say. A dropped message's buffer is on its way back. */
static void driver_drops_short_and_long(void)
{
	static const struct { uint32_t used; uint16_t hdr; int want; } cases[] = {
		{ 0, 0, RPX_RX_SHORT }, { 15, 0, RPX_RX_SHORT }, { 16, 0, RPX_RX_MESSAGE }, { 16, 1, RPX_RX_LONG },
		{ 64, 48, RPX_RX_MESSAGE }, { 64, 49, RPX_RX_LONG }, { 64, 0xffff, RPX_RX_LONG }, { 20, 3, RPX_RX_MESSAGE },
	};
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		struct rpx_msg msg;
		make_link(false, false, RPX_KIND_CACHED);
		rpx_put16(&((struct rpx_rpmsg_hdr *)(void *)bufs)->len, cases[i].hdr, false);
		set_used(0, 0, cases[i].used);
		set_used_idx(1);
		CHECK(rpx_rx_next(&rx, &msg) == cases[i].want);
		CHECK(rpx_drv_in_flight(&drv) == (cases[i].want == RPX_RX_MESSAGE ? 3 : 4) && drv.broken == 0);
		if (cases[i].want == RPX_RX_MESSAGE)
			CHECK(msg.len == cases[i].hdr);
	}
	struct rpx_msg msg;
	make_link(false, false, RPX_KIND_CACHED);
	set_used(0, 0, BUF + 1);
	set_used_idx(1);
	CHECK(rpx_rx_next(&rx, &msg) == RPX_E_USED_LEN && rpx_rx_broken(&rx) == RPX_E_USED_LEN);
	CHECK(rpx_rx_next(&rx, &msg) == RPX_E_USED_LEN && rpx_rx_done(&rx, 0) == RPX_E_USED_LEN);
}

static void device_drops_short_and_long(void)
{
	static const struct { uint32_t len; uint16_t hdr; int want; } cases[] = {
		{ 1, 0, RPX_RX_SHORT }, { 15, 0, RPX_RX_SHORT }, { 16, 0, RPX_RX_MESSAGE }, { 16, 1, RPX_RX_LONG },
		{ 64, 48, RPX_RX_MESSAGE }, { 64, 49, RPX_RX_LONG }, { 64, 0xffff, RPX_RX_LONG },
	};
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		for (uint32_t whole = 0; whole < 2; whole++) {
			struct rpx_msg msg;
			make_link(true, false, RPX_KIND_CACHED);
			rx.whole = whole != 0;
			rpx_put16(&((struct rpx_rpmsg_hdr *)(void *)bufs)->len, cases[i].hdr, false);
			set_desc(2, ADDR, cases[i].len, 0, 0);
			set_avail(0, 2);
			set_avail_idx(1);
			CHECK(rpx_rx_next(&rx, &msg) == cases[i].want && dev.broken == 0);
			if (cases[i].want == RPX_RX_MESSAGE)
				CHECK(dev.held == 1 && rpx_rx_done(&rx, msg.token) == 0);
			CHECK(dev.held == 0);
			rpx_rx_publish(&rx);
			CHECK(rpx_get32(&rpx_ring_used_entry(&ring, 0)->id, false) == 2);
			CHECK(rpx_get32(&rpx_ring_used_entry(&ring, 0)->len, false) == whole * cases[i].len);
		}
	}
	struct rpx_msg msg; /* a second done() of the same message changes nothing */
	make_link(true, false, RPX_KIND_CACHED);
	set_desc(2, ADDR, 16, 0, 0);
	set_avail(0, 2);
	set_avail_idx(1);
	CHECK(rpx_rx_next(&rx, &msg) == 1 && rpx_rx_done(&rx, msg.token) == 0 && rpx_rx_done(&rx, msg.token) == RPX_E_INVAL);
	make_link(true, false, RPX_KIND_CACHED); /* a header that this CPU might not be able to read */
	set_desc(2, ADDR + 2, 32, 0, 0);
	set_avail(0, 2);
	set_avail_idx(1);
	BREAKS_DEV(rpx_rx_next(&rx, &msg), DESC_ADDR);
	make_link(true, false, RPX_KIND_CACHED);
	set_avail_idx(9);
	BREAKS_DEV(rpx_rx_next(&rx, &msg), AVAIL_IDX);
}

/* 2.7.4.1-1: a message may be cut anywhere, even in its header. */
static void chains_are_gathered(void)
{
	for (uint32_t cut = 1; cut < 40; cut++) {
		for (int indirect = 0; indirect < 2; indirect++) {
			for (int kind = RPX_KIND_CACHED; kind <= RPX_KIND_DEVICE; kind++) {
				make_link(true, false, (uint8_t)kind);
				struct rpx_rpmsg_hdr *h = (struct rpx_rpmsg_hdr *)(void *)(bufs + BUF);
				struct rpx_sg sg[2] = { { addr_of(2), cut }, { addr_of(3), 40 - cut } };
				struct rpx_msg msg;
				rpx_put32(&h->src, 7, false);
				rpx_put32(&h->dst, 8, false);
				rpx_put16(&h->len, 24, false);
				for (uint32_t i = 0; i < 24; i++)
					bufs[BUF + RPX_HDR + i] = (uint8_t)(100 + i);
				memcpy(bufs + 2 * BUF, h, cut);
				memcpy(bufs + 3 * BUF, bufs + BUF + cut, 40 - cut);
				if (indirect)
					CHECK(rpx_drv_add_indirect(&drv, (struct rpx_desc *)(void *)(bufs + 8 * BUF), addr_of(8),
								   sg, 2, 0, 0) == 0);
				else
					CHECK(rpx_drv_add(&drv, sg, 2, 0, 0) == 0);
				rpx_drv_publish(&drv);
				CHECK(rpx_rx_next(&rx, &msg) == RPX_RX_MESSAGE && msg.src == 7 && msg.dst == 8 && msg.len == 24);
				CHECK(msg.copied && msg.data == scratch + RPX_HDR);
				CHECK(memcmp(msg.data, bufs + BUF + RPX_HDR, 24) == 0);
				CHECK(rpx_rx_done(&rx, msg.token) == 0);
			}
		}
	}
	struct rpx_sg sg[2] = { { addr_of(2), 50 }, { addr_of(3), 50 } };
	struct rpx_msg msg;
	make_link(true, false, RPX_KIND_CACHED); /* scratch filled to the last byte */
	CHECK(rpx_drv_add(&drv, sg, 2, 0, 0) == 0);
	rpx_drv_publish(&drv);
	CHECK(rpx_rx_next(&rx, &msg) == RPX_RX_MESSAGE && msg.len == 0);
	make_link(true, false, RPX_KIND_CACHED); /* and one byte more */
	sg[1].len = 51;
	CHECK(rpx_drv_add(&drv, sg, 2, 0, 0) == 0);
	rpx_drv_publish(&drv);
	BREAKS_DEV(rpx_rx_next(&rx, &msg), CHAIN_BYTES);
	make_link(true, false, RPX_KIND_CACHED); /* no place to put it together */
	rx.scratch = NULL;
	CHECK(rpx_drv_add(&drv, sg, 2, 0, 0) == 0);
	rpx_drv_publish(&drv);
	BREAKS_DEV(rpx_rx_next(&rx, &msg), CHAIN_BYTES);
	make_link(true, false, RPX_KIND_CACHED); /* 8 + 7 bytes are no header */
	sg[0].len = 8;
	sg[1].len = 7;
	CHECK(rpx_drv_add(&drv, sg, 2, 0, 0) == 0);
	rpx_drv_publish(&drv);
	CHECK(rpx_rx_next(&rx, &msg) == RPX_RX_SHORT && dev.held == 0);
}

/* A device that sends takes what the driver posted: too short for a header is returned empty, readable is refused. */
static void device_tx_checks_posted_buffers(void)
{
	struct rpx_txbuf buf;
	make_at(4, false, false, true, 0);
	memset(&tx, 0, sizeof tx);
	tx.dev = &dev;
	tx.mem = &mem;
	tx.spare = spare;
	static const uint32_t lens[] = { 1, 15, 16, 64 };
	for (uint32_t i = 0; i < 4; i++)
		CHECK(rpx_drv_add1(&drv, addr_of(i), lens[i], true, i) == 0);
	rpx_drv_publish(&drv);
	CHECK(rpx_tx_get(&tx, &buf) == RPX_TX_BUFFER && buf.cap == 0 && buf.data == bufs + 2 * BUF + RPX_HDR);
	CHECK(rpx_tx_put(&tx, &buf, 1, 2, 0) == 0 && rpx_tx_publish(&tx));
	for (uint32_t i = 0; i < 3; i++) {
		struct rpx_used used;
		CHECK(rpx_drv_get(&drv, &used) == 1 && used.cookie == i && used.len == (i < 2 ? 0 : RPX_HDR));
	}
	CHECK(rpx_tx_get(&tx, &buf) == RPX_TX_BUFFER && buf.cap == 48 && rpx_tx_put(&tx, &buf, 1, 2, 48) == 0);
	CHECK(rpx_tx_get(&tx, &buf) == RPX_TX_NONE);

	make(4);
	for (uint32_t i = 0; i < 4; i++) /* nothing but useless ones: the work is bounded */
		CHECK(rpx_drv_add1(&drv, addr_of(i), 8, true, i) == 0);
	rpx_drv_publish(&drv);
	CHECK(rpx_tx_get(&tx, &buf) == RPX_TX_NONE && dev.held == 0 && rpx_tx_publish(&tx));

	make(4);
	set_desc(0, ADDR, 64, 0, 0);
	set_avail_idx(1);
	BREAKS_DEV(rpx_tx_get(&tx, &buf), DESC_READONLY);
	make(4);
	set_desc(0, ADDR + 2, 32, RPX_DESC_F_WRITE, 0);
	set_avail_idx(1);
	BREAKS_DEV(rpx_tx_get(&tx, &buf), DESC_ADDR);

	struct rpx_sg sg[2] = { { addr_of(0), 32 }, { addr_of(1), 32 } };
	make(4); /* of a chain, the first element */
	CHECK(rpx_drv_add(&drv, sg, 0, 2, 5) == 0);
	rpx_drv_publish(&drv);
	CHECK(rpx_tx_get(&tx, &buf) == RPX_TX_BUFFER && buf.cap == 16 && buf.data == bufs + RPX_HDR);
	make(4);
	CHECK(rpx_drv_add(&drv, sg, 1, 1, 5) == 0);
	rpx_drv_publish(&drv);
	BREAKS_DEV(rpx_tx_get(&tx, &buf), DESC_READONLY);
}

/* hdr.len has 16 bits; a larger buffer has room for no more than that. */
static void cap_fits_the_header(void)
{
	uint8_t *big = xalloc(70000);
	struct rpx_region r = { big, 0x100000, 70000, RPX_PERM_READ | RPX_PERM_WRITE };
	struct rpx_mem m = { &r, 1 };
	struct rpx_txbuf buf = { 0 };
	make(2);
	memset(&tx, 0, sizeof tx);
	tx.dev = &dev;
	tx.mem = &m;
	tx.spare = spare;
	int rc = rpx_drv_add1(&drv, 0x100000, 70000, true, 0);
	rpx_drv_publish(&drv);
	rc = rc == 0 ? rpx_tx_get(&tx, &buf) : rc;
	free(big);
	CHECK(rc == RPX_TX_BUFFER && buf.cap == 0xffff);
}

/* ---------------------------------------------------------------------------------------------- the short way ---- */

enum way { LONG, SHORT, RUN, WAYS };

/* Message i: its bytes and its length. */
static uint32_t message(uint32_t i, uint8_t *bytes)
{
	memset(bytes, (int)i, BUF);
	return i % (BUF - RPX_HDR + 1);
}

/* Send up to `n` messages, `first` and on, that way: how many. */
static uint32_t send_some(enum way way, uint32_t first, uint32_t n)
{
	uint32_t i = first;
	struct rpx_tx_run run;
	rpx_tx_run_begin(&run, &tx, n);
	for (; i < first + n; i++) {
		uint8_t bytes[BUF];
		uint32_t len = message(i, bytes);
		struct rpx_txbuf buf;
		if (way == RUN) {
			if (!rpx_tx_run_turn(&run, 1024 + i, i, bytes, len))
				break;
		} else if (way == SHORT) {
			if (!rpx_tx_turn(&tx, 1024 + i, i, bytes, len))
				break;
		} else if (rpx_tx_get(&tx, &buf) == RPX_TX_BUFFER) {
			rpx_copy_to(buf.data, bytes, len, (enum rpx_kind)tx.kind);
			if (rpx_tx_put(&tx, &buf, 1024 + i, i, len) != 0)
				abort();
		} else {
			break;
		}
	}
	if (way == RUN)
		rpx_tx_run_end(&run, &tx);
	return i - first;
}

static bool is_message(const struct rpx_msg *msg, uint32_t i)
{
	uint8_t want[BUF], got[BUF];
	uint32_t len = message(i, want);
	if (msg->len != len || msg->src != 1024 + i || msg->dst != i || msg->copied)
		return false;
	rpx_copy_from(got, msg->data, len, (enum rpx_kind)rx.kind);
	return memcmp(got, want, len) == 0;
}

/* Receive up to `n` messages, `first` and on, that way: how many were there and as they should be. */
static uint32_t receive_some(enum way way, uint32_t first, uint32_t n)
{
	uint32_t i = first;
	struct rpx_msg msg;
	if (way == RUN) {
		struct rpx_rx_run run;
		rpx_rx_run_begin(&run, &rx, n);
		for (; rpx_rx_run_peek(&run, &msg) && is_message(&msg, i); i++)
			rpx_rx_run_turn(&run, &msg);
		rpx_rx_run_end(&run, &rx);
		return run.n;
	}
	for (; i < first + n; i++) {
		if (way == SHORT) {
			if (!rpx_rx_peek(&rx, &msg) || !is_message(&msg, i))
				break;
			rpx_rx_turn(&rx, &msg);
		} else if (rpx_rx_next(&rx, &msg) != RPX_RX_MESSAGE || !is_message(&msg, i) || rpx_rx_done(&rx, msg.token) != 0) {
			break;
		}
	}
	return i - first;
}

/* Each way out meets each way in, on the same ring, and what one way begins another goes on with. */
static void ways_mix(bool to_device, bool swap, uint8_t kind, bool whole)
{
	make_link(to_device, swap, kind);
	rx.whole = tx.whole = whole;
	uint32_t i = to_device ? send_some(LONG, 0, 4) : 0; /* a driver's short way is for buffers that came back */
	rpx_tx_publish(&tx);
	CHECK(receive_some(LONG, 0, i) == i);
	rpx_rx_publish(&rx);
	for (uint32_t round = 0; round < 8 * WAYS * WAYS; round++) {
		enum way out = (enum way)(round % WAYS), in = (enum way)(round / WAYS % WAYS);
		uint32_t n = 1 + round % 4;
		uint16_t used = rpx_get16(rpx_ring_w16(ring.used, RPX_RING_IDX), swap);
		CHECK(send_some(out, i, n) == n && send_some(out, i + n, 4) == 4 - n); /* until there is no buffer */
		CHECK(receive_some(in, i, 4) == 0); /* staged is not published */
		rpx_tx_publish(&tx);
		CHECK(receive_some(in, i, n) == n && receive_some((enum way)((in + 1) % WAYS), i + n, 4) == 4 - n);
		CHECK(receive_some(in, i + 4, 1) == 0 && rpx_rx_publish(&rx));
		for (uint32_t k = 0; !packed && k < 4; k++) { /* what a device returns as used.len */
			uint8_t bytes[BUF];
			uint32_t size = RPX_HDR + message(i + k, bytes);
			uint32_t want = to_device ? (whole ? size : 0) : (whole ? BUF : size);
			CHECK(rpx_get32(&rpx_ring_used_entry(&ring, (uint16_t)(used + k))->len, swap) == want);
		}
		i += 4;
	}
	CHECK(rpx_rx_broken(&rx) == 0 && rpx_tx_broken(&tx) == 0 && dev.held == 0);
	CHECK(packed || rpx_drv_in_flight(&drv) == 4);
}

static void short_way_and_long_way_mix(void)
{
	for (int f = 0; f < 24; f++)
		if (!packed || (f & 4) == 0) /* OpenAMP has no packed rings */
			ways_mix((f & 1) != 0, (f & 2) != 0, (uint8_t)(f >> 3), (f & 4) != 0);
}

/* Everything that an end could change. */
static struct state {
	struct rpx_drv drv;
	struct rpx_dev dev;
	struct rpx_drv_slot slots[4];
	uint32_t seen[4];
	uint8_t desc[64], avail[14], used[38], bufs[NUM_MAX * BUF];
} before, after;

static void look_around(struct state *s)
{
	memcpy(&s->drv, &drv, sizeof drv);
	memcpy(&s->dev, &dev, sizeof dev);
	memcpy(s->slots, slots, sizeof s->slots);
	memcpy(s->seen, seen, sizeof s->seen);
	memcpy(s->desc, ring.desc, sizeof s->desc);
	memcpy(s->avail, ring.avail, sizeof s->avail);
	memcpy(s->used, ring.used, sizeof s->used);
	memcpy(s->bufs, bufs, sizeof s->bufs);
}

/* The short way in shows nothing, and leaves everything as it is. */
static bool shows_nothing(void)
{
	struct rpx_msg msg;
	struct rpx_rx_run run;
	rpx_rx_look(&rx);
	look_around(&before);
	bool shown = rpx_rx_peek(&rx, &msg);
	rpx_rx_run_begin(&run, &rx, 4);
	shown = rpx_rx_run_peek(&run, &msg) || shown;
	rpx_rx_run_end(&run, &rx);
	look_around(&after);
	return !shown && run.n == 0 && memcmp(&before, &after, sizeof before) == 0;
}

/* And so does the way out, for a message of `size` bytes. */
static bool sends_nothing(size_t size)
{
	static const uint8_t bytes[0x10001];
	struct rpx_tx_run run;
	rpx_tx_look(&tx);
	look_around(&before);
	bool sent = rpx_tx_turn(&tx, 1, 2, bytes, size);
	rpx_tx_run_begin(&run, &tx, 4);
	sent = rpx_tx_run_turn(&run, 1, 2, bytes, size) || sent;
	rpx_tx_run_end(&run, &tx);
	look_around(&after);
	return !sent && run.n == 0 && memcmp(&before, &after, sizeof before) == 0;
}

/* A run takes the first of what is there, and no more. */
static bool run_of_one(void)
{
	struct rpx_msg msg;
	struct rpx_rx_run run;
	rpx_rx_run_begin(&run, &rx, 4);
	while (rpx_rx_run_peek(&run, &msg))
		rpx_rx_run_turn(&run, &msg);
	rpx_rx_run_end(&run, &rx);
	return run.max == 2 && run.n == 1 && rpx_rx_broken(&rx) == 0;
}

static void device_short_way_in(void)
{
	static const struct { uint16_t head; uint64_t addr; uint32_t len, flags; uint16_t hdr; int want; } cases[] = {
		{ 4, ADDR, 64, 0, 0, RPX_E_AVAIL_HEAD },
		{ 0xffff, ADDR, 64, 0, 0, RPX_E_AVAIL_HEAD },
		{ 1, ADDR, 0, 0, 0, RPX_E_DESC_LEN },
		{ 1, ADDR, 15, 0, 0, RPX_RX_SHORT },
		{ 1, ADDR, 64, 0, 49, RPX_RX_LONG },
		{ 1, ADDR + 2, 32, 0, 0, RPX_E_DESC_ADDR },
		{ 1, ADDR - 4, 32, 0, 0, RPX_E_DESC_ADDR },
		{ 1, ADDR, NUM_MAX * BUF + 1, 0, 0, RPX_E_DESC_ADDR },
		{ 1, ADDR, 32, RPX_DESC_F_NEXT, 0, RPX_E_DESC_LEN }, /* a chain, whose second element is empty */
		{ 1, ADDR + BUF, 32, RPX_DESC_F_INDIRECT, 0, RPX_E_DESC_LEN },
		{ 1, ADDR, 64, RPX_DESC_F_WRITE, 0, RPX_RX_MESSAGE }, /* odd, but harmless */
	};
	struct rpx_msg msg;
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		make_link(true, false, RPX_KIND_CACHED);
		rpx_put16(&((struct rpx_rpmsg_hdr *)(void *)bufs)->len, cases[i].hdr, false);
		set_desc(1, cases[i].addr, cases[i].len, cases[i].flags, 2);
		set_avail(0, cases[i].head);
		set_avail_idx(1);
		CHECK(shows_nothing() && dev.broken == 0);
		CHECK(rpx_rx_next(&rx, &msg) == cases[i].want);
		CHECK(cases[i].want > 0 || (rpx_rx_look(&rx) == cases[i].want && shows_nothing()));
	}
	make_link(true, false, RPX_KIND_CACHED); /* what it shows stays until it is taken */
	set_desc(1, ADDR, 64, 0, 0);
	set_avail(0, 1);
	set_avail(1, 1);
	set_avail_idx(1);
	CHECK(rpx_rx_peek(&rx, &msg) && rpx_rx_peek(&rx, &msg) && msg.room == 64 && dev.held == 0);
	CHECK(rpx_rx_next(&rx, &msg) == RPX_RX_MESSAGE && dev.held == 1);
	set_avail_idx(2); /* while it is held */
	CHECK(shows_nothing());
	BREAKS_DEV(rpx_rx_next(&rx, &msg), AVAIL_TWICE);
	make_link(true, false, RPX_KIND_CACHED); /* named twice under one value of avail.idx: a run stops at the second */
	set_desc(1, ADDR, 64, 0, 0);
	set_avail(0, 1);
	set_avail(1, 1);
	set_avail_idx(2);
	CHECK(run_of_one() && shows_nothing());
	BREAKS_DEV(rpx_rx_next(&rx, &msg), AVAIL_TWICE);
	make_link(true, false, RPX_KIND_CACHED);
	set_avail_idx(5);
	CHECK(rpx_rx_look(&rx) == RPX_E_AVAIL_IDX && shows_nothing());
}

static void driver_short_way_in(void)
{
	static const struct { uint32_t id, len; uint16_t hdr; int want; } cases[] = {
		{ 4, 16, 0, RPX_E_USED_ID }, { 0x10001, 16, 0, RPX_E_USED_ID }, { 1, BUF + 1, 0, RPX_E_USED_LEN },
		{ 1, UINT32_MAX, 0, RPX_E_USED_LEN }, { 1, 15, 0, RPX_RX_SHORT }, { 1, 20, 5, RPX_RX_LONG },
	};
	struct rpx_msg msg;
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		make_link(false, false, RPX_KIND_CACHED);
		rpx_put16(&((struct rpx_rpmsg_hdr *)(void *)(bufs + BUF))->len, cases[i].hdr, false);
		set_used(0, cases[i].id, cases[i].len);
		set_used_idx(1);
		CHECK(shows_nothing() && drv.broken == 0);
		CHECK(rpx_rx_next(&rx, &msg) == cases[i].want);
		CHECK(cases[i].want > 0 || (rpx_rx_look(&rx) == cases[i].want && shows_nothing()));
	}
	make_link(false, false, RPX_KIND_CACHED); /* the same one twice */
	set_used(0, 1, 16);
	set_used(1, 1, 16);
	set_used_idx(2);
	CHECK(run_of_one() && shows_nothing());
	BREAKS_DRV(rpx_rx_next(&rx, &msg), USED_IDLE);
	make_link(false, false, RPX_KIND_CACHED);
	set_used_idx(5);
	CHECK(rpx_rx_look(&rx) == RPX_E_USED_IDX && shows_nothing());
}

static void device_short_way_out(void)
{
	static const struct { uint64_t addr; uint32_t len, flags; int want; } cases[] = {
		{ ADDR, 64, 0, RPX_E_DESC_READONLY },
		{ ADDR, 15, RPX_DESC_F_WRITE, RPX_TX_NONE },
		{ ADDR, 0, RPX_DESC_F_WRITE, RPX_E_DESC_LEN },
		{ ADDR, 63, RPX_DESC_F_WRITE, RPX_TX_BUFFER }, /* one byte short of the 48 to be sent */
		{ ADDR + 2, 66, RPX_DESC_F_WRITE, RPX_E_DESC_ADDR },
		{ ADDR_RO, 64, RPX_DESC_F_WRITE, RPX_E_DESC_ADDR },
		{ ADDR, 64, RPX_DESC_F_WRITE | RPX_DESC_F_NEXT, RPX_TX_BUFFER }, /* of a chain, the first element */
		{ ADDR, 64, RPX_DESC_F_WRITE | RPX_DESC_F_INDIRECT, RPX_E_DESC_LEN },
	};
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		struct rpx_txbuf buf;
		make_link(false, false, RPX_KIND_CACHED);
		set_desc(0, cases[i].addr, cases[i].len, cases[i].flags, 1);
		set_avail_idx(1);
		CHECK(sends_nothing(48) && dev.broken == 0);
		CHECK(rpx_tx_get(&tx, &buf) == cases[i].want);
	}
	struct rpx_region r = { bufs, ADDR, 70000, RPX_PERM_READ | RPX_PERM_WRITE };
	struct rpx_mem m = { &r, 1 };
	make_link(false, false, RPX_KIND_CACHED); /* hdr.len has 16 bits */
	tx.mem = &m;
	set_desc(0, ADDR, 70000, RPX_DESC_F_WRITE, 0);
	set_avail_idx(1);
	CHECK(sends_nothing(0x10000) && tx.room == 0xffff);
}

static void driver_short_way_out(void)
{
	struct rpx_txbuf buf;
	for (uint32_t id = 1; id < 5; id++) { /* one that is only staged, two that are idle, one that there is not */
		make_link(true, false, RPX_KIND_CACHED);
		CHECK(sends_nothing(0)); /* no buffer has come back */
		CHECK(send_some(LONG, 0, 1) == 1 && rpx_tx_publish(&tx) && send_some(LONG, 1, 1) == 1);
		set_used(0, id, 0);
		set_used_idx(1);
		CHECK(sends_nothing(0) && drv.broken == 0);
		CHECK(rpx_tx_get(&tx, &buf) == (id < 4 ? RPX_E_USED_IDLE : RPX_E_USED_ID));
	}
	make_link(true, false, RPX_KIND_CACHED); /* the same one twice */
	CHECK(send_some(LONG, 0, 2) == 2 && rpx_tx_publish(&tx));
	set_used(0, 1, 0);
	set_used(1, 1, 0);
	set_used_idx(2);
	CHECK(sends_nothing(BUF - RPX_HDR + 1) && send_some(RUN, 2, 4) == 1 && sends_nothing(0));
	BREAKS_DRV(rpx_tx_get(&tx, &buf), USED_IDLE);
}

/* A run ends at its limit. */
static void runs_are_bounded(void)
{
	for (int to_device = 0; to_device < 2; to_device++) {
		make_link(to_device != 0, false, RPX_KIND_CACHED);
		CHECK(send_some(LONG, 0, 4) == 4 && send_some(RUN, 4, 4) == 0);
		rpx_tx_publish(&tx);
		CHECK(receive_some(RUN, 0, 0) == 0 && receive_some(RUN, 0, 3) == 3 && receive_some(RUN, 3, 3) == 1);
		rpx_rx_publish(&rx);
		CHECK(send_some(RUN, 4, 0) == 0 && send_some(RUN, 4, 3) == 3 && send_some(RUN, 7, 3) == 1);
	}
}

static void rpmsg_over_packed_rings(void)
{
	packed = true;
	rpmsg_both_ways();
	rpmsg_buffers_run_out();
	rpmsg_mutes();
	short_way_and_long_way_mix();
	runs_are_bounded();
	packed = false;
}

static void name_service(void)
{
	for (int swap = 0; swap < 2; swap++) {
		struct rpx_rpmsg_ns ns;
		memset(&ns, 0xee, sizeof ns);
		rpx_ns_encode(&ns, "rpmsg-client-sample", 0x01020304, false, swap != 0);
		CHECK(memcmp(ns.name, "rpmsg-client-sample\0\0\0\0\0\0\0\0\0\0\0\0", 32) == 0);
		CHECK(rpx_get32(&ns.addr, swap != 0) == 0x01020304 && rpx_get32(&ns.flags, swap != 0) == RPX_NS_CREATE);
		CHECK(rpx_ns_name_len(&ns) == 19);
		rpx_ns_encode(&ns, "0123456789012345678901234567890X", 1, true, swap != 0); /* cut to 31 */
		CHECK(memcmp(ns.name, "0123456789012345678901234567890\0", 32) == 0 && rpx_ns_name_len(&ns) == 31);
		CHECK(rpx_get32(&ns.flags, swap != 0) == RPX_NS_DESTROY);
		rpx_ns_encode(&ns, "0123456789012345678901234567890", 1, true, swap != 0); /* 31 fit */
		CHECK(rpx_ns_name_len(&ns) == 31);
		rpx_ns_encode(&ns, "", 1, true, swap != 0);
		CHECK(rpx_ns_name_len(&ns) == 0);
		memset(ns.name, 'x', sizeof ns.name); /* no NUL */
		CHECK(rpx_ns_name_len(&ns) == 0);
	}
}

/* Last: whatever a peer can do wrong was done above. */
static void every_error_was_raised(void)
{
	for (uint32_t i = 0; i < RPX_N_ERRORS; i++) {
		if (!raised[i])
			printf("  never raised: %s\n", rpx_error_text(-1 - (int)i));
		CHECK(raised[i]);
	}
}

int main(void)
{
	TEST(need_event_is_its_definition);
	TEST(idx_diff_wraps);
	TEST(errors_have_rules_and_texts);
	TEST(swap_reverses_bytes);
	TEST(mem_at_bounds);
	TEST(device_copies);
	TEST(legacy_layout);
	TEST(ring_init_refuses);
	TEST(indices_wrap);
	TEST(full_batches_wrap);
	TEST(largest_queue);
	TEST(free_list);
	TEST(chains_are_walked);
	TEST(device_leaves_descriptors_alone);
	TEST(driver_refuses_bad_chains);
	TEST(limit_near_4_gib);
	TEST(push_refuses_what_was_not_popped);
	TEST(driver_checks_used_idx);
	TEST(driver_checks_used_id);
	TEST(driver_checks_used_idle);
	TEST(driver_checks_used_len);
	TEST(device_checks_avail_idx);
	TEST(device_checks_avail_head);
	TEST(device_checks_duplicates);
	TEST(look_counter_wraps);
	TEST(device_checks_desc_addr);
	TEST(device_checks_desc_len);
	TEST(device_checks_chain_order);
	TEST(device_checks_chain_next);
	TEST(device_checks_chain_steps);
	TEST(device_checks_chain_bytes);
	TEST(device_checks_indirect);
	TEST(notifications_by_flag);
	TEST(notifications_by_threshold);
	TEST(rpmsg_both_ways);
	TEST(rpmsg_buffers_run_out);
	TEST(rpmsg_mutes);
	TEST(kept_descriptors);
	TEST(copies_of_every_length);
	TEST(driver_drops_short_and_long);
	TEST(device_drops_short_and_long);
	TEST(chains_are_gathered);
	TEST(device_tx_checks_posted_buffers);
	TEST(cap_fits_the_header);
	TEST(short_way_and_long_way_mix);
	TEST(device_short_way_in);
	TEST(driver_short_way_in);
	TEST(device_short_way_out);
	TEST(driver_short_way_out);
	TEST(runs_are_bounded);
	TEST(rpmsg_over_packed_rings);
	TEST(name_service);
	TEST(every_error_was_raised);
	unmake();
	printf("%d of %d failed\n", failures, total);
	return failures != 0;
}
