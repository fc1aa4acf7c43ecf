/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A small model checker for the ring core: one driver, one device, a queue of two, split or packed, and every
 * interleaving of their accesses under store buffers. It looks for a lost wake-up (an end sleeps for good while there is
 * work) and for an index, or a descriptor's flags, seen before what they announce.
 *
 * An end is a function of what its loads returned. So a state is: per end the list of results so far, and its stores
 * that have not reached memory; plus memory. To find an end's next access the function is run again from its start,
 * fed with the list, and left by longjmp at the first access that has no result yet. States are plain values, seen
 * once each.
 *
 *   TSO  stores reach memory in program order, after later loads of the same end (x86).
 *   PSO  besides, stores overtake each other, but none is overtaken by a later release store, nor by one to its place.
 *
 * Loads happen in program order in both: that acquire is not dropped is for ThreadSanitizer to see (stress.c).
 */
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "rpx.h"

#define STEPS 200 /* of one end; the longest run takes fewer */
#define STORES 64 /* of one end not yet in memory */
#define SEEN_BITS 22
#define DEPTH 1000

enum { DRIVER, DEVICE, ENDS };
enum op { LOAD, STORE, FENCE, KICK, SLEEP, END, WRONG };

struct store {
	uint16_t at;
	uint8_t size;
	bool release;
	uint64_t v;
};

struct end {
	uint64_t results[STEPS]; /* of loads; 0 for the other steps */
	uint32_t steps;
	struct store stores[STORES];
	uint32_t n_stores;
	bool kicked; /* by the other; taken by sleep */
};

struct state {
	uint8_t memory[176];
	struct end ends[ENDS];
};

/* What the driver publishes at once: on a split ring a buffer, on a packed one a buffer, two, or a list of two. */
enum shape { SPLIT, ONE, BATCH, LIST };

struct config {
	bool pso;
	bool event_idx;
	uint16_t start; /* both indices, or places, begin here */
	uint32_t messages;
	enum shape shape;
	uint32_t num;
};

static struct config config;

/* ------------------------------------------------------------------------------------------ running one end ---- */

static _Alignas(16) uint8_t shared[sizeof(((struct state *)0)->memory)]; /* names places; holds nothing */
static const struct end *running;
static uint32_t step;
static jmp_buf at_next;
static struct { /* the access that has no result yet */
	enum op op;
	struct store store;
	const char *wrong;
} next;

static uint64_t take_step(enum op op)
{
	if (step < running->steps)
		return running->results[step++];
	next.op = op;
	longjmp(at_next, 1);
}

uint64_t explore_load(const void *p, size_t size)
{
	next.store.at = (uint16_t)((const uint8_t *)p - shared);
	next.store.size = (uint8_t)size;
	return take_step(LOAD);
}

void explore_store(const void *p, size_t size, uint64_t v, bool release)
{
	next.store = (struct store){ (uint16_t)((const uint8_t *)p - shared), (uint8_t)size, release, v };
	take_step(STORE);
}

void explore_fence(void)
{
	take_step(FENCE);
}

static void wrong(const char *what)
{
	next.wrong = what;
	take_step(WRONG);
}

/* ----------------------------------------------------------------------------------------------- the two ends ---- */

/*
 * Places in memory: descriptors 0, avail 32, used 48, or event suppression 32 and 36; from 80 on, for each message a word
 * of payload and one for the answer.
 */
#define PAYLOAD 80u
#define ADDR 0x1000u

static struct rpx_w32 *payload(uint32_t i)
{
	return (struct rpx_w32 *)(void *)(shared + PAYLOAD + 16u * i);
}

static struct rpx_w32 *answer(uint32_t i)
{
	return payload(i) + 2;
}

static void make_ring(struct rpx_ring *ring)
{
	if (rpx_ring_init(ring, shared, shared + 32, shared + 48, 2, RPX_ORDER_SMP, false) != 0)
		abort();
	ring->event_idx = config.event_idx;
}

/* Send; then wait until everything came back. */
static __attribute__((noinline)) void driver(void)
{
	struct rpx_ring ring;
	struct rpx_drv q;
	struct rpx_drv_slot slots[2];
	make_ring(&ring);
	rpx_drv_init(&q, &ring, slots);
	q.avail_idx = q.avail_pub = q.last_used = q.used_seen = config.start;
	for (uint32_t i = 0; i < config.messages; i++) {
		rpx_put32(payload(i), 0xc0de + i, false);
		if (rpx_drv_add1(&q, ADDR + 16u * i, 4 + i, false, i) != 0)
			wrong("the driver cannot add");
		if (rpx_drv_publish(&q))
			take_step(KICK);
	}
	for (uint32_t done = 0; done < config.messages;) {
		struct rpx_used used = { 0 };
		int rc;
		rpx_drv_mute(&q);
		while ((rc = rpx_drv_get(&q, &used)) == 1) {
			if (used.cookie != done || used.len != 4 + done)
				wrong("the driver sees a used index before its entry");
			done++;
		}
		if (rc < 0)
			wrong("the driver sees a broken ring");
		if (done < config.messages && !rpx_drv_unmute(&q))
			take_step(SLEEP);
	}
}

static __attribute__((noinline)) void device(void)
{
	struct rpx_region region = { shared + PAYLOAD, ADDR, 16 * 6, RPX_PERM_READ };
	struct rpx_mem mem = { &region, 1 };
	struct rpx_ring ring;
	struct rpx_dev q;
	uint32_t seen[2];
	make_ring(&ring);
	rpx_dev_init(&q, &ring, seen, config.start, config.start);
	for (uint32_t done = 0; done < config.messages;) {
		uint16_t head = 0;
		int rc;
		rpx_dev_mute(&q);
		while ((rc = rpx_dev_pop(&q, &head)) == 1) {
			struct rpx_seg seg = { 0 };
			if (rpx_dev_single(&q, &mem, head, &seg) != 1 || seg.ptr != (uint8_t *)payload(done) || seg.len != 4 + done)
				wrong("the device sees an available index before its descriptor");
			if (rpx_get32(payload(done), false) != 0xc0de + done)
				wrong("the device sees an available index before its buffer");
			rpx_dev_push(&q, head, seg.len);
			if (rpx_dev_publish(&q))
				take_step(KICK);
			done++;
		}
		if (rc < 0)
			wrong("the device sees a broken ring");
		if (done < config.messages && !rpx_dev_unmute(&q))
			take_step(SLEEP);
	}
}

/* Of one buffer, odd messages are the device's to write; a list has one of each. */
static bool readable(uint32_t i)
{
	return config.shape == LIST || i % 2 == 0;
}

static bool writable(uint32_t i)
{
	return config.shape == LIST || i % 2 != 0;
}

static uint32_t written(uint32_t i)
{
	return writable(i) ? 1 + i : 0;
}

static void make_packed(struct rpx_packed *q, struct rpx_packed_buf *bufs, bool device)
{
	struct rpx_packed_ring ring;
	if (rpx_packed_ring_init(&ring, shared, shared + 32, shared + 36, config.num, RPX_ORDER_SMP, false) != 0)
		abort();
	ring.event_idx = config.event_idx;
	rpx_packed_init(q, &ring, bufs, device, config.start);
}

/* Stage message i, if there is room. */
static bool packed_add(struct rpx_packed *q, uint32_t i)
{
	struct rpx_sg sg[2];
	uint32_t n = 0;
	if (q->num_free < (config.shape == LIST ? 2 : 1))
		return false;
	if (readable(i)) {
		rpx_put32(payload(i), 0xc0de + i, false);
		sg[n++] = (struct rpx_sg){ ADDR + 16u * i, 4 + i };
	}
	if (writable(i))
		sg[n++] = (struct rpx_sg){ ADDR + 16u * i + 8u, 4 + i };
	if (rpx_packed_add(q, sg, readable(i), writable(i), i) != 0)
		wrong("the driver cannot add");
	return true;
}

/* Send as much as there is room for, take what came back, and wait for more where nothing did. */
static __attribute__((noinline)) void packed_driver(void)
{
	struct rpx_packed q;
	struct rpx_packed_buf bufs[2];
	uint32_t sent = 0, back = 0; /* the latter a bit for each */
	make_packed(&q, bufs, false);
	while (back != (1u << config.messages) - 1) {
		struct rpx_used used = { 0 };
		uint32_t staged, got = 0;
		int rc;
		do {
			for (staged = 0; staged < (config.shape == BATCH ? 2 : 1) && sent < config.messages; staged++, sent++)
				if (!packed_add(&q, sent))
					break;
			if (rpx_packed_publish(&q))
				take_step(KICK);
		} while (staged > 0);
		rpx_packed_mute(&q);
		while ((rc = rpx_packed_get(&q, &used)) == 1) {
			if (used.cookie >= sent || (back >> used.cookie & 1) != 0 || used.len != written(used.cookie))
				wrong("the driver sees the flags of a used descriptor before the rest of it");
			if (writable(used.cookie) && rpx_get32(answer(used.cookie), false) != 0xbeef + used.cookie)
				wrong("the driver sees a used descriptor before its buffer");
			back |= 1u << used.cookie;
			got++;
		}
		if (rc < 0)
			wrong("the driver sees a broken ring");
		if (got == 0 && !rpx_packed_unmute(&q))
			take_step(SLEEP);
	}
}

/* Serve message i; all of it is there when the flags of its first descriptor are. */
static void packed_serve(struct rpx_packed *q, struct rpx_packed_chain *c, uint32_t i)
{
	struct rpx_region region = { shared + PAYLOAD, ADDR, 16 * 6, RPX_PERM_READ | RPX_PERM_WRITE };
	struct rpx_mem mem = { &region, 1 };
	struct rpx_seg seg = { 0 };
	if (readable(i)) {
		if (rpx_packed_next(c, q, &mem, &seg) != 1 || seg.ptr != (uint8_t *)payload(i) || seg.len != 4 + i || seg.write)
			wrong("the device sees the flags of an available descriptor before the rest of it");
		if (rpx_get32(payload(i), false) != 0xc0de + i)
			wrong("the device sees an available descriptor before its buffer");
	}
	if (writable(i)) {
		if (rpx_packed_next(c, q, &mem, &seg) != 1 || seg.ptr != (uint8_t *)answer(i) || seg.len != 4 + i || !seg.write)
			wrong("the device sees the flags of an available descriptor before the rest of it");
		rpx_put32(answer(i), 0xbeef + i, false);
	}
	if (rpx_packed_next(c, q, &mem, &seg) != 0)
		wrong("the device sees a list that is too long");
}

/* A batch is given back in the other order, so that ids change places. */
static __attribute__((noinline)) void packed_device(void)
{
	struct rpx_packed q;
	struct rpx_packed_buf bufs[2];
	uint32_t done = 0;
	make_packed(&q, bufs, true);
	while (done < config.messages) {
		struct rpx_packed_chain c[2];
		uint32_t held = 0;
		int rc = 0;
		rpx_packed_mute(&q);
		while (held < (config.shape == BATCH ? 2 : 1) && (rc = rpx_packed_pop(&q, &c[held])) == 1)
			packed_serve(&q, &c[held++], done++);
		if (rc < 0)
			wrong("the device sees a broken ring");
		for (uint32_t i = held; i-- > 0;)
			rpx_packed_push(&q, c[i].id, written(done - held + i));
		if (rpx_packed_publish(&q))
			take_step(KICK);
		if (held == 0 && !rpx_packed_unmute(&q))
			take_step(SLEEP);
	}
}

/* ------------------------------------------------------------------------------------------------- the search ---- */

static struct state stack[DEPTH];
static const char *trail[DEPTH];
static uint64_t *seen_states;
static uint32_t n_seen;

static enum op peek(const struct state *s, int who)
{
	running = &s->ends[who];
	step = 0;
	if (setjmp(at_next) == 0) {
		static void (*const ends[2][ENDS])(void) = { { driver, device }, { packed_driver, packed_device } };
		ends[config.shape != SPLIT][who]();
		next.op = END;
	}
	return next.op;
}

static void overlay(uint8_t *bytes, const struct store *st)
{
	for (uint32_t i = 0; i < st->size; i++)
		bytes[st->at + i] = (uint8_t)(st->v >> 8 * i); /* the model's memory is little-endian */
}

/* An end reads its own stores before the others do. */
static uint64_t read_through(const struct state *s, const struct end *e, const struct store *what)
{
	uint8_t bytes[sizeof s->memory];
	uint64_t v = 0;
	memcpy(bytes, s->memory, sizeof bytes);
	for (uint32_t i = 0; i < e->n_stores; i++)
		overlay(bytes, &e->stores[i]);
	for (uint32_t i = 0; i < what->size; i++)
		v |= (uint64_t)bytes[what->at + i] << 8 * i;
	return v;
}

/* May the i-th waiting store be the next to reach memory? */
static bool may_drain(const struct end *e, uint32_t i)
{
	if (i == 0)
		return true;
	if (!config.pso || e->stores[i].release)
		return false;
	for (uint32_t k = 0; k < i; k++)
		if (e->stores[k].at == e->stores[i].at)
			return false;
	return true;
}

static void drain(struct state *s, struct end *e, uint32_t i)
{
	overlay(s->memory, &e->stores[i]);
	e->n_stores--;
	memmove(&e->stores[i], &e->stores[i + 1], (e->n_stores - i) * sizeof e->stores[0]);
}

static void add_result(struct end *e, uint64_t v)
{
	if (e->steps == STEPS)
		abort();
	e->results[e->steps++] = v;
}

/* Steps that no other end can see, so that their place among its steps does not matter: taken at once. */
static enum op settle(struct state *s, int who)
{
	struct end *e = &s->ends[who];
	enum op op;
	while ((op = peek(s, who)) == STORE || (op == FENCE && e->n_stores == 0)) {
		if (op == STORE) {
			if (e->n_stores == STORES)
				abort();
			e->stores[e->n_stores++] = next.store;
		}
		add_result(e, 0);
	}
	return op;
}

static uint64_t mix(uint64_t h, uint64_t v)
{
	h = (h ^ v) * 0x9e3779b97f4a7c15u;
	return h ^ h >> 29;
}

static bool first_visit(const struct state *s)
{
	uint64_t h = 1;
	for (uint32_t i = 0; i < sizeof s->memory; i += 8) {
		uint64_t word;
		memcpy(&word, &s->memory[i], sizeof word);
		h = mix(h, word);
	}
	for (int who = 0; who < ENDS; who++) {
		const struct end *e = &s->ends[who];
		h = mix(mix(mix(h, e->steps), e->n_stores), e->kicked);
		for (uint32_t i = 0; i < e->steps; i++)
			h = mix(h, e->results[i]);
		for (uint32_t i = 0; i < e->n_stores; i++)
			h = mix(mix(h, e->stores[i].at), e->stores[i].v);
	}
	h |= 1; /* 0 marks a free place */
	for (uint32_t i = (uint32_t)(h >> 40);; i++) {
		uint64_t *place = &seen_states[i & ((1u << SEEN_BITS) - 1)];
		if (*place == h)
			return false;
		if (*place == 0) {
			*place = h;
			if (++n_seen > 1u << (SEEN_BITS - 1))
				abort();
			return true;
		}
	}
}

static const char *fail(uint32_t depth, const char *what)
{
	static const char *const tags[2] = { "driver", "device" };
	printf("  %s, after:", what);
	for (uint32_t i = 1; i <= depth; i++)
		printf(" %s", trail[i]);
	printf("\n");
	for (int who = 0; who < ENDS; who++)
		printf("  %s: %u steps, %u stores not in memory\n", tags[who], (unsigned)stack[depth].ends[who].steps,
		       (unsigned)stack[depth].ends[who].n_stores);
	return what;
}

/* Everything that can follow stack[depth]: NULL, or what can go wrong. */
static const char *explore(uint32_t depth)
{
	static const char *const names[2][3] = { { "D.load", "D.kick", "D.wakes" }, { "d.load", "d.kick", "d.wakes" } };
	static const char *const drains[2] = { "D.drain", "d.drain" };
	struct state *s = &stack[depth], *to = s + 1;
	const char *bad;
	struct store next_load[ENDS];
	enum op ops[ENDS];
	bool moved = false;
	if (depth + 1 == DEPTH)
		abort();
	for (int who = 0; who < ENDS; who++) {
		ops[who] = settle(s, who);
		next_load[who] = next.store;
		if (next.op == WRONG)
			return fail(depth, next.wrong);
	}
	if (!first_visit(s))
		return NULL;
	for (int who = 0; who < ENDS; who++) {
		struct end *e = &s->ends[who];
		for (uint32_t i = 0; i < e->n_stores; i++) {
			if (!may_drain(e, i))
				continue;
			moved = true;
			*to = *s;
			drain(to, &to->ends[who], i);
			trail[depth + 1] = drains[who];
			if ((bad = explore(depth + 1)) != NULL)
				return bad;
		}
		enum op op = ops[who];
		/* A doorbell follows what it speaks of (rpx_fence_doorbell). */
		if (!(op == LOAD || (op == KICK && e->n_stores == 0) || (op == SLEEP && e->kicked)))
			continue;
		moved = true;
		*to = *s;
		add_result(&to->ends[who], op == LOAD ? read_through(s, e, &next_load[who]) : 0);
		if (op == KICK)
			to->ends[!who].kicked = true;
		else if (op == SLEEP)
			to->ends[who].kicked = false;
		trail[depth + 1] = names[who][op == LOAD ? 0 : op == KICK ? 1 : 2];
		if ((bad = explore(depth + 1)) != NULL)
			return bad;
	}
	return !moved && !(ops[DRIVER] == END && ops[DEVICE] == END) ? fail(depth, "lost wake-up") : NULL;
}

static bool run(struct config c)
{
	static const char *const shapes[] = { "split", "packed", "packed_batch", "packed_list" };
	config = c;
	n_seen = 0;
	memset(seen_states, 0, sizeof *seen_states << SEEN_BITS);
	memset(&stack[0], 0, sizeof stack[0]);
	/* Both indices, and both thresholds, begin at `start`: avail.idx, used_event, used.idx, avail_event. */
	static const uint16_t places[] = { 32 + 2, 32 + 4 + 4, 48 + 2, 48 + 4 + 16 };
	for (uint32_t i = 0; c.shape == SPLIT && i < 4; i++)
		overlay(stack[0].memory, &(struct store){ places[i], 2, false, c.start });
	/* Descriptors are as the round before has left them: used. */
	for (uint16_t slot = 0; c.shape != SPLIT && slot < c.num; slot++) {
		uint64_t flags = (slot < (c.start & 0x7fffu)) == (c.start >> 15) ? 0x8080u : 0;
		overlay(stack[0].memory, &(struct store){ (uint16_t)(16u * slot + 14u), 2, false, flags });
	}
	bool ok = explore(0) == NULL;
	printf("%s %s_%s_%s_%u_messages_from_%u_of_%u: %u states\n", ok ? "ok" : "FAIL", shapes[c.shape], c.pso ? "pso" : "tso",
	       c.event_idx ? "threshold" : "flag", (unsigned)c.messages, (unsigned)c.start, (unsigned)c.num, (unsigned)n_seen);
	return ok;
}

int main(void)
{
	int failed = 0;
	seen_states = malloc(sizeof *seen_states << SEEN_BITS);
	if (seen_states == NULL)
		return 2;
	for (int f = 0; f < 8; f++)
		failed += !run((struct config){ (f & 1) != 0, (f & 2) != 0, f & 4 ? 65535 : 0, 2, SPLIT, 2 });
	/* From slot 1 the wrap counter changes on the way; a list of two, and a queue of one, use descriptors again. */
	for (int f = 0; f < 4; f++) {
		bool pso = (f & 1) != 0, event_idx = (f & 2) != 0;
		failed += !run((struct config){ pso, event_idx, RPX_PACKED_START + 1, 2, ONE, 2 });
		failed += !run((struct config){ pso, event_idx, RPX_PACKED_START, 2, ONE, 1 });
		failed += !run((struct config){ pso, event_idx, 1, 3, BATCH, 2 });
		failed += !run((struct config){ pso, event_idx, 1, 2, LIST, 2 });
	}
	free(seen_states);
	return failed != 0;
}
