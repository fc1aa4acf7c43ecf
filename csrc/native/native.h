/* SPDX-License-Identifier: BSD-3-Clause */
/* The remote as a thread or process of this machine. This file is also what cffi reads: declarations only. */
#ifndef RPX_NATIVE_H
#define RPX_NATIVE_H

#include <stdint.h>
/* cffi reads from here */
struct rpx_native_grant {
	void *base;
	uint64_t da;
	uint64_t addr; /* the same memory in descriptors */
	uint64_t len;
};

struct rpx_native {
	const char *app;
	void *table; /* rpx_native_table_size() bytes, aligned to 8 */
	void *trace;
	uint32_t trace_size;
	uint32_t n_grants; /* at most 4 */
	struct rpx_native_grant grants[4];
	int events;   /* eventfd, non-blocking: 1 kick, 1 << 32 detach, 1 << 48 stop */
	int kicks;    /* eventfd, non-blocking: 1 for each kick of the host */
	int acks;     /* eventfd, non-blocking: RPX_EVENT bits dealt with */
	int lifeline; /* hangs up when the host dies; -1 in a thread of the host */
};

/* The applications by number; NULL after the last. */
const char *rpx_native_app(uint32_t index);
uint32_t rpx_native_table_size(void);
/* Write the resource table, with a trace buffer at `trace_da`, as the firmware's loader would. */
void rpx_native_table(void *out, uint32_t trace_da, uint32_t trace_size);
/* Run until the stop event: 0; RPX_FAULT_* where it gave up; -errno where it could not begin. Any number at once. */
int rpx_native_run(const struct rpx_native *native);
/* sha256 of the sources that this was compiled from, in hex. */
const char *rpx_native_sources_sha256(void);
/* cffi reads to here */
#endif
