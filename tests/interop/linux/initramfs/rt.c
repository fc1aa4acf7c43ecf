/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * rt: what a program in the guest can do to the character devices of rpmsg. What the kernel answers is printed as
 * it is, as NUMBER or as -ERRNO (text). Exit status: 0 done, 1 something was wrong, 2 usage.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#define WAIT_MS 5000
#define MESSAGE 4096 /* more than any buffer of rpmsg holds */

struct endpoint_info { /* struct rpmsg_endpoint_info of linux/rpmsg.h */
	char name[32];
	uint32_t src;
	uint32_t dst;
};

#define CREATE_EPT _IOW(0xb5, 1, struct endpoint_info)
#define DESTROY_EPT _IO(0xb5, 2)
#define CREATE_DEV _IOW(0xb5, 3, struct endpoint_info)
#define RELEASE_DEV _IOW(0xb5, 4, struct endpoint_info)

/* Prints what a call returned and returns it. */
static long tell(const char *what, long result)
{
	if (result < 0)
		printf("%s: -%d (%s)\n", what, errno, strerror(errno));
	else
		printf("%s: %ld\n", what, result);
	return result;
}

static int device(const char *path, int flags)
{
	int fd = open(path, O_RDWR | O_CLOEXEC | flags);

	if (fd < 0) {
		tell(path, fd);
		exit(1);
	}
	return fd;
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static size_t number(const char *text)
{
	return strtoul(text, NULL, 0);
}

/* echo DEVICE COUNT SIZE: each message must come back */
static int echo(char **arg)
{
	int fd = device(arg[0], 0);
	size_t count = number(arg[1]), size = number(arg[2]);
	char sent[MESSAGE], back[MESSAGE];
	double begin = now();

	if (size > sizeof(sent))
		return 2;
	for (size_t i = 0; i < count; i++) {
		struct pollfd in = {.fd = fd, .events = POLLIN};

		memset(sent, (int)('a' + i % 26), size);
		if (write(fd, sent, size) != (ssize_t)size)
			return tell("write", -1), 1;
		if (poll(&in, 1, WAIT_MS) != 1 || !(in.revents & POLLIN))
			return printf("message %zu: no echo, poll %x\n", i, in.revents), 1;
		if (read(fd, back, sizeof(back)) != (ssize_t)size || memcmp(sent, back, size))
			return printf("message %zu: wrong echo\n", i), 1;
	}
	printf("%zu of %zu bytes, %.0f us each\n", count, size, (now() - begin) / (double)count * 1e6);
	return 0;
}

/* control DEVICE create|new|release NAME SRC DST: an endpoint, a channel, the end of a channel */
static int control(char **arg)
{
	struct endpoint_info info = {.src = (uint32_t)number(arg[3]), .dst = (uint32_t)number(arg[4])};
	unsigned long request;

	if (!strcmp(arg[1], "create"))
		request = CREATE_EPT;
	else if (!strcmp(arg[1], "new"))
		request = CREATE_DEV;
	else if (!strcmp(arg[1], "release"))
		request = RELEASE_DEV;
	else
		return 2;
	memcpy(info.name, arg[2], strnlen(arg[2], sizeof(info.name)));
	return tell(arg[1], ioctl(device(arg[0], 0), request, &info)) < 0;
}

/* talk DEVICE TEXT MS: send it, print what comes until nothing has come for MS milliseconds */
static int talk(char **arg)
{
	struct pollfd in = {.fd = device(arg[0], 0), .events = POLLIN};
	char data[MESSAGE];

	if (write(in.fd, arg[1], strlen(arg[1])) < 0)
		return tell("write", -1), 1;
	while (poll(&in, 1, (int)number(arg[2])) > 0) {
		ssize_t size = read(in.fd, data, sizeof(data));

		if (size < 0)
			return tell("read", -1), 1;
		printf("read: %zd %.*s\n", size, (int)size, data);
	}
	return 0;
}

/* flood DEVICE COUNT: send without waiting until one is refused; how many, why, and what poll says then */
static int flood(char **arg)
{
	struct pollfd io = {.fd = device(arg[0], O_NONBLOCK), .events = POLLIN | POLLOUT};
	size_t count = number(arg[1]), i;

	for (i = 0; i < count; i++)
		if (write(io.fd, "flood", 5) != 5) {
			tell("refused", -1);
			break;
		}
	poll(&io, 1, 0);
	printf("sent: %zu, poll: %x\n", i, io.revents);
	return 0;
}

/* write DEVICE SIZE: one message */
static int write_one(char **arg)
{
	static char data[1 << 16];
	size_t size = number(arg[1]);

	return size > sizeof(data) ? 2 : tell("write", write(device(arg[0], 0), data, size)) < 0;
}

/* destroy DEVICE: the endpoint, while it is open, and what can be done with it afterwards */
static int destroy(char **arg)
{
	struct pollfd io = {.fd = device(arg[0], O_NONBLOCK), .events = POLLIN | POLLOUT};
	char data[8] = "";

	tell("destroy", ioctl(io.fd, DESTROY_EPT));
	tell("read", read(io.fd, data, sizeof(data)));
	tell("write", write(io.fd, data, sizeof(data)));
	poll(&io, 1, 0);
	printf("poll: %x\n", io.revents);
	tell("open", open(arg[0], O_RDWR | O_CLOEXEC));
	return 0;
}

/* open DEVICE: twice, and the limits of an endpoint that has nothing to read */
static int open_twice(char **arg)
{
	int fd = device(arg[0], O_NONBLOCK);
	char data[8];

	tell("open", open(arg[0], O_RDWR | O_CLOEXEC));
	tell("read", read(fd, data, sizeof(data)));
	tell("ioctl", ioctl(fd, _IO(0xb5, 0xff)));
	tell("write", write(fd, data, 0));
	return 0;
}

static const struct {
	const char *name;
	int arguments;
	int (*run)(char **arg);
	const char *usage;
} commands[] = {
	{"echo", 3, echo, "DEVICE COUNT SIZE"},
	{"control", 5, control, "DEVICE create|new|release NAME SRC DST"},
	{"talk", 3, talk, "DEVICE TEXT MS"},
	{"flood", 2, flood, "DEVICE COUNT"},
	{"write", 2, write_one, "DEVICE SIZE"},
	{"destroy", 1, destroy, "DEVICE"},
	{"open", 1, open_twice, "DEVICE"},
};

int main(int argc, char **argv)
{
	size_t i, n = sizeof(commands) / sizeof(commands[0]);

	for (i = 0; i < n; i++)
		if (argc >= 2 && !strcmp(argv[1], commands[i].name) && argc == commands[i].arguments + 2) {
			int status = commands[i].run(argv + 2);

			if (status != 2)
				return status;
		}
	for (i = 0; i < n; i++)
		fprintf(stderr, "rt %s %s\n", commands[i].name, commands[i].usage);
	return 2;
}
