/* SPDX-License-Identifier: BSD-3-Clause */
/* The port of csrc/remote to eventfds. No static state changes: any number of remotes run in one process. */
#define _GNU_SOURCE
#include "native.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "remote/remote.h"

#ifndef RPX_SOURCES_SHA256
#define RPX_SOURCES_SHA256 ""
#endif

static const struct rpx_app *const native_apps[] = {&rpx_app_sample, &rpx_app_flood, &rpx_app_crash};
#define NATIVE_APPS (sizeof(native_apps) / sizeof(native_apps[0]))

const char *rpx_native_app(uint32_t index)
{
	return index < NATIVE_APPS ? native_apps[index]->name : NULL;
}

uint32_t rpx_native_table_size(void)
{
	return sizeof(struct rpx_remote_table);
}

void rpx_native_table(void *out, uint32_t trace_da, uint32_t trace_size)
{
	const struct rpx_remote_table table = RPX_REMOTE_TABLE(trace_da, trace_size);
	memcpy(out, &table, sizeof(table));
}

const char *rpx_native_sources_sha256(void)
{
	return RPX_SOURCES_SHA256;
}

static void native_kick(void *ctx, uint32_t notifyid)
{
	const struct rpx_native *n = (const struct rpx_native *)ctx;
	(void)notifyid; /* any ring means "look at every vring" */
	(void)eventfd_write(n->kicks, 1);
}

static uint32_t native_poll(void *ctx)
{
	const struct rpx_native *n = (const struct rpx_native *)ctx;
	eventfd_t value;
	if (eventfd_read(n->events, &value) != 0)
		return 0;
	return ((value & 0xffffffffu) != 0 ? RPX_EVENT_KICK : 0u) |
	       ((value >> 32 & 0xffffu) != 0 ? RPX_EVENT_DETACH : 0u) | (value >> 48 != 0 ? RPX_EVENT_STOP : 0u);
}

/* False: the host has died. `fd` -1 waits for that alone. */
static bool native_sleep(const struct rpx_native *n, int fd)
{
	struct pollfd fds[2] = {{.fd = fd, .events = POLLIN}, {.fd = n->lifeline, .events = 0}};
	while (poll(fds, 2, -1) < 0 && errno == EINTR)
		;
	return fds[1].revents == 0;
}

static uint32_t native_wait(void *ctx)
{
	return native_sleep((const struct rpx_native *)ctx, ((const struct rpx_native *)ctx)->events)
		       ? native_poll(ctx)
		       : RPX_EVENT_STOP;
}

static void native_ack(void *ctx, uint32_t events)
{
	(void)eventfd_write(((const struct rpx_native *)ctx)->acks, events);
}

/* A process really dies; a thread returns, and its run ends. */
static void native_fault(void *ctx, uint32_t cause)
{
	static volatile uint32_t *volatile const nowhere = (volatile uint32_t *)16;
	if (((const struct rpx_native *)ctx)->lifeline < 0)
		return;
	if (cause == RPX_FAULT_UNDEFINED)
		__builtin_trap();
	if (cause == RPX_FAULT_ACCESS)
		(void)*nowhere;
}

/* A process hangs until it is killed; a thread cannot be, so it gives way to the stop event, and to that alone. */
static void native_hang(void *ctx)
{
	const struct rpx_native *n = (const struct rpx_native *)ctx;
	if (n->lifeline >= 0) {
		(void)native_sleep(n, -1);
		_exit(1);
	}
	while ((native_wait(ctx) & RPX_EVENT_STOP) == 0)
		;
}

int rpx_native_run(const struct rpx_native *native)
{
	const struct rpx_port port = {(void *)(uintptr_t)native, native_kick,  native_poll, native_wait,
				      native_ack,                native_fault, native_hang};
	const struct rpx_app *app = NULL;
	struct rpx_grant grants[RPX_REMOTE_GRANTS];
	for (size_t i = 0; i < NATIVE_APPS; i++) {
		if (strcmp(native_apps[i]->name, native->app) == 0)
			app = native_apps[i];
	}
	if (app == NULL || native->n_grants > RPX_REMOTE_GRANTS || ((uintptr_t)native->table & 7u) != 0)
		return -EINVAL;
	for (uint32_t i = 0; i < native->n_grants; i++) {
		grants[i].base = (uint8_t *)native->grants[i].base;
		grants[i].da = native->grants[i].da;
		grants[i].addr = native->grants[i].addr;
		grants[i].len = native->grants[i].len;
	}
	struct rpx_remote *remote = (struct rpx_remote *)calloc(1, sizeof(*remote) + ((app->state_size + 7u) & ~7u));
	if (remote == NULL)
		return -ENOMEM;
	rpx_remote_init(remote, app, remote + 1, &port, (struct rpx_remote_table *)native->table, grants,
			native->n_grants, (char *)native->trace, native->trace_size);
	uint32_t fault = rpx_remote_run(remote);
	free(remote);
	return (int)fault;
}
