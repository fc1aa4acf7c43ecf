/* SPDX-License-Identifier: BSD-3-Clause */
/* Error values, compiler helpers and 16-bit index arithmetic. C11, freestanding: no libc anywhere below csrc/rpx. */
#ifndef RPX_BASE_H
#define RPX_BASE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define RPX_ABI 1

#define rpx_likely(x) __builtin_expect(!!(x), 1)
#define rpx_unlikely(x) __builtin_expect(!!(x), 0)

/* The steps of every message: inlined where speed counts, left to the compiler where size does. */
#if __STDC_HOSTED__ && !defined(__OPTIMIZE_SIZE__)
#define RPX_HOT static inline __attribute__((always_inline))
#else
#define RPX_HOT static inline
#endif

/*
 * One error value per broken rule: X(name, rule id, text). The ids are the project's own (docs/conformance.md):
 * section of VIRTIO 1.2, then the number of the statement in it. Errors of the peer break the queue until reset;
 * the last two are the caller's own.
 */
#define RPX_ERRORS(X) \
	X(AVAIL_IDX, "2.7.6.1-1", "avail.idx moved by more than the queue size") \
	X(AVAIL_HEAD, "2.7.6-head", "avail.ring names a descriptor outside the table") \
	X(AVAIL_TWICE, "2.7.6-twice", "avail.ring names a descriptor that the device still holds") \
	X(USED_IDX, "2.7.8-idx", "used.idx moved by more than is outstanding") \
	X(USED_ID, "2.7.8-id", "used.ring names a descriptor outside the table") \
	X(USED_IDLE, "2.7.8-idle", "used.ring names a descriptor that is not outstanding") \
	X(USED_LEN, "2.7.8.3-1", "used.len is longer than the buffer") \
	X(DESC_ADDR, "2.7.5-addr", "a descriptor points outside the memory it may use") \
	X(DESC_LEN, "2.7.5-len", "a descriptor has length 0") \
	X(DESC_ORDER, "2.7.4.2-1", "a device-readable descriptor follows a device-writable one") \
	X(DESC_READONLY, "2.7.5.1-1", "a buffer to be written is device-readable") \
	X(CHAIN_NEXT, "2.7.5-next", "desc.next is outside the table") \
	X(CHAIN_STEPS, "2.7.5.3.1-3", "a chain has more elements than the queue") \
	X(CHAIN_BYTES, "2.7.5.2-1", "a chain has more bytes than allowed") \
	X(INDIRECT_OFF, "2.7.5.3.1-1", "an indirect descriptor was not negotiated") \
	X(INDIRECT_NESTED, "2.7.5.3.1-2", "an indirect descriptor inside an indirect table") \
	X(INDIRECT_NEXT, "2.7.5.3.1-4", "INDIRECT together with NEXT") \
	X(INDIRECT_LEN, "2.7.5.3-len", "an indirect table's length is not a multiple of 16") \
	X(INVAL, "", "invalid argument") \
	X(FULL, "", "no free descriptor")

enum rpx_error_ordinal {
#define RPX_X(name, rule, text) RPX_ORD_##name,
	RPX_ERRORS(RPX_X)
#undef RPX_X
	RPX_N_ERRORS
};

enum rpx_error {
#define RPX_X(name, rule, text) RPX_E_##name = -1 - RPX_ORD_##name,
	RPX_ERRORS(RPX_X)
#undef RPX_X
};

/* The rule that error `e` (negative) stands for, "" where it is the caller's mistake. */
static inline const char *rpx_error_rule(int e)
{
	switch (e) {
#define RPX_X(name, rule, text) case RPX_E_##name: return rule;
	RPX_ERRORS(RPX_X)
#undef RPX_X
	default: return "";
	}
}

static inline const char *rpx_error_text(int e)
{
	switch (e) {
#define RPX_X(name, rule, text) case RPX_E_##name: return text;
	RPX_ERRORS(RPX_X)
#undef RPX_X
	default: return "unknown error";
	}
}

/* The one place where ring indices are subtracted: free-running, 16 bits, the cast is on the result. */
static inline uint16_t rpx_idx_diff(uint16_t a, uint16_t b)
{
	return (uint16_t)(a - b);
}

/* VIRTIO 2.7.7.1, 2.7.10.1: has `event` been passed by the move from `old` to `idx`, that is, is it in [old, idx)? */
static inline bool rpx_need_event(uint16_t event, uint16_t idx, uint16_t old)
{
	return rpx_idx_diff(rpx_idx_diff(idx, event), 1) < rpx_idx_diff(idx, old);
}

#endif
