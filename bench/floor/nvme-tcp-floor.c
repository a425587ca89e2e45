/*
 * The floor for the NVMe/TCP benchmark: the least that a single-threaded C program must do to serve one memory namespace
 * over NVMe/TCP. It has the shape of the real target (one receive buffer a connection parsed in place, one gather-send a
 * round, payloads sent from where they are, write data received into place) and nothing else: no checks, no block layer,
 * no statistics, one namespace, one thread, busy polling. Compiled and used only by the benchmark.
 *
 *     cc -O2 -o nvme-tcp-floor nvme-tcp-floor.c && ./nvme-tcp-floor MEBIBYTES     # prints its port
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#define RECEIVE (128 * 1024)
#define BATCH 512
#define SLOTS 1024
#define BLOCK 512
#define IN_CAPSULE 4096
#define MAX_IO (128 * 1024)

struct write_slot {
	uint16_t cid;
	uint64_t offset;
	uint32_t length, arrived;
};

struct connection {
	int fd, is_admin, no_flow_control, is_dirty, epoll_out;
	uint16_t sqhd, sq_size;
	uint8_t buffer[RECEIVE];
	uint32_t head, tail;
	/* A payload that is still arriving goes straight to where it belongs. */
	uint8_t *place;
	uint32_t missing;
	struct write_slot *placing;
	struct iovec out[BATCH * 2];
	uint8_t headers[BATCH * 2][24];
	int out_count, header_count, out_first;
	struct write_slot slots[SLOTS];
	uint8_t page[8192];
};

static uint8_t *memory;
static uint64_t memory_size;
static uint32_t cc, csts;
static int epoll;

static void put16(uint8_t *p, uint16_t v) { memcpy(p, &v, 2); }
static void put32(uint8_t *p, uint32_t v) { memcpy(p, &v, 4); }
static void put64(uint8_t *p, uint64_t v) { memcpy(p, &v, 8); }
static uint16_t get16(const uint8_t *p) { uint16_t v; memcpy(&v, p, 2); return v; }
static uint32_t get32(const uint8_t *p) { uint32_t v; memcpy(&v, p, 4); return v; }
static uint64_t get64(const uint8_t *p) { uint64_t v; memcpy(&v, p, 8); return v; }

static void add(struct connection *c, void *base, size_t length)
{
	struct iovec *last = &c->out[c->out_count - 1];
	if (c->out_count > 0 && (uint8_t *)last->iov_base + last->iov_len == base)
		last->iov_len += length;
	else
		c->out[c->out_count++] = (struct iovec){ base, length };
	c->is_dirty = 1;
}

static uint8_t *header(struct connection *c, uint8_t type, uint8_t flags, uint8_t pdo, uint32_t plen)
{
	uint8_t *h = c->headers[c->header_count++];
	memset(h, 0, 24);
	h[0] = type;
	h[1] = flags;
	h[2] = 24;
	h[3] = pdo;
	put32(h + 4, plen);
	add(c, h, 24);
	return h;
}

static void respond(struct connection *c, uint16_t cid, uint64_t result, uint16_t status)
{
	uint8_t *h = header(c, 5, 0, 0, 24);
	put64(h + 8, result);
	put16(h + 16, c->no_flow_control ? 0xffff : c->sqhd);
	put16(h + 20, cid);
	put16(h + 22, status << 1);
}

static void send_data(struct connection *c, uint16_t cid, void *data, uint32_t length)
{
	uint8_t *h = header(c, 7, c->no_flow_control ? 4 | 8 : 4, 24, 24 + length);
	put16(h + 8, cid);
	put32(h + 16, length);
	add(c, data, length);
	if (!c->no_flow_control)
		respond(c, cid, 0, 0);
}

static void identify(struct connection *c, uint16_t cid, const uint8_t *sqe)
{
	uint8_t *p = c->page;
	memset(p, 0, 4096);
	switch (sqe[40]) {
	case 0: /* namespace */
		put64(p, memory_size / BLOCK);
		put64(p + 8, memory_size / BLOCK);
		put64(p + 16, memory_size / BLOCK);
		memset(p + 104, 0x11, 16);
		p[130] = 9;
		break;
	case 1: /* controller */
		memset(p + 4, ' ', 20 + 40 + 8);
		memcpy(p + 4, "FLOOR", 5);
		memcpy(p + 24, "floor", 5);
		p[77] = 5;
		put16(p + 78, 1);
		put32(p + 80, 0x10400);
		p[111] = 1;
		put16(p + 320, 10);
		p[512] = 0x66;
		p[513] = 0x44;
		put16(p + 514, 1024);
		put32(p + 516, 1);
		put32(p + 536, 0x100005);
		strcpy((char *)p + 768, "nqn.2026-11.io.qpair:floor");
		put32(p + 1792, (64 + IN_CAPSULE) / 16);
		put32(p + 1796, 1);
		p[1803] = 1;
		break;
	case 2: /* active namespaces */
		if (get32(sqe + 4) < 1)
			put32(p, 1);
		break;
	case 3: /* descriptors */
		p[0] = 3;
		p[1] = 16;
		memset(p + 4, 0x11, 16);
		break;
	}
	send_data(c, cid, p, 4096);
}

static void fabrics(struct connection *c, uint16_t cid, const uint8_t *sqe)
{
	switch (sqe[4]) {
	case 0: /* property set */
		if (get32(sqe + 44) == 0x14) {
			cc = get32(sqe + 48);
			csts = (cc & 1) | ((cc >> 14 & 3) ? 8 : 0);
		}
		respond(c, cid, 0, 0);
		break;
	case 1: /* connect */
		c->is_admin = get16(sqe + 42) == 0;
		c->sq_size = get16(sqe + 44) + 1;
		c->no_flow_control = sqe[46] >> 2 & 1;
		respond(c, cid, 1, 0);
		break;
	case 4: { /* property get */
		uint32_t offset = get32(sqe + 44);
		uint64_t value = offset == 0 ? 1023ull | 1ull << 16 | 10ull << 24 | 1ull << 37
			       : offset == 8 ? 0x10400 : offset == 0x14 ? cc : offset == 0x1c ? csts : 0;
		respond(c, cid, value, 0);
		break;
	}
	default:
		respond(c, cid, 0, 1);
	}
}

static void admin(struct connection *c, uint16_t cid, const uint8_t *sqe)
{
	switch (sqe[0]) {
	case 0x02: { /* log page */
		uint32_t length = ((get32(sqe + 40) >> 16) + 1) * 4;
		memset(c->page, 0, sizeof c->page);
		send_data(c, cid, c->page, length < sizeof c->page ? length : sizeof c->page);
		break;
	}
	case 0x06: identify(c, cid, sqe); break;
	case 0x09: respond(c, cid, 0x007f007f, 0); break;
	case 0x0c: break; /* asynchronous events never come */
	default: respond(c, cid, 0, 0);
	}
}

static void place(struct connection *c, struct write_slot *slot, uint8_t *to, uint32_t length)
{
	uint32_t here = c->tail - c->head < length ? c->tail - c->head : length;
	memcpy(to, c->buffer + c->head, here);
	c->head += here;
	c->placing = slot;
	c->place = to + here;
	c->missing = length - here;
}

static void command(struct connection *c, const uint8_t *pdu, uint32_t in_capsule)
{
	const uint8_t *sqe = pdu + 8;
	uint16_t cid = get16(sqe + 2);
	c->sqhd = (c->sqhd + 1) % c->sq_size;
	if (sqe[0] == 0x7f) {
		c->head += in_capsule;
		fabrics(c, cid, sqe);
	} else if (c->is_admin) {
		c->head += in_capsule;
		admin(c, cid, sqe);
	} else {
		uint64_t offset = get64(sqe + 40) * BLOCK % memory_size;
		uint32_t length = (get16(sqe + 48) + 1) * BLOCK;
		struct write_slot *slot = &c->slots[cid % SLOTS];
		if (sqe[0] == 2) {
			send_data(c, cid, memory + offset, length);
		} else if (sqe[0] == 1) {
			*slot = (struct write_slot){ cid, offset, length, in_capsule };
			if (in_capsule > 0) {
				place(c, slot, memory + offset, in_capsule);
			} else {
				uint8_t *h = header(c, 9, 0, 0, 24);
				put16(h + 8, cid);
				put16(h + 10, cid % SLOTS);
				put32(h + 16, length);
			}
		} else {
			respond(c, cid, 0, 0);
		}
	}
}

/* Takes every complete PDU while there is room for its answer. */
static void parse(struct connection *c)
{
	while (c->out_count < BATCH && c->header_count < BATCH) {
		if (c->placing) {
			if (c->missing > 0)
				return;
			if (c->placing->arrived == c->placing->length)
				respond(c, c->placing->cid, 0, 0);
			c->placing = NULL;
		}
		uint32_t available = c->tail - c->head;
		uint8_t *pdu = c->buffer + c->head;
		if (available < 8 || available < pdu[2])
			return;
		uint32_t plen = get32(pdu + 4);
		switch (pdu[0]) {
		case 0: { /* ICReq */
			static uint8_t response[128] = { 1, 0, 128, 0, 128 };
			if (available < 128)
				return;
			put32(response + 12, MAX_IO);
			c->head += 128;
			add(c, response, 128);
			break;
		}
		case 4: { /* command capsule: whole, but for the data of a write */
			int is_write = !c->is_admin && pdu[8] == 1;
			if (available < (is_write ? 72 : plen))
				return;
			c->head += 72;
			command(c, pdu, plen - 72);
			break;
		}
		case 6: { /* H2CData */
			struct write_slot *slot = &c->slots[get16(pdu + 10)];
			uint32_t length = get32(pdu + 16);
			c->head += pdu[3];
			place(c, slot, memory + slot->offset + get32(pdu + 12), length);
			slot->arrived += length;
			break;
		}
		default:
			exit(1);
		}
	}
}

static int flush(struct connection *c)
{
	while (c->out_first < c->out_count) {
		struct msghdr message = { .msg_iov = c->out + c->out_first, .msg_iovlen = c->out_count - c->out_first };
		ssize_t sent = sendmsg(c->fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
		if (sent < 0)
			return errno == EAGAIN ? 0 : -1;
		while (sent > 0) {
			struct iovec *iov = &c->out[c->out_first];
			size_t part = (size_t)sent < iov->iov_len ? (size_t)sent : iov->iov_len;
			iov->iov_base = (uint8_t *)iov->iov_base + part;
			iov->iov_len -= part;
			sent -= part;
			if (iov->iov_len == 0)
				c->out_first++;
		}
	}
	c->out_first = c->out_count = c->header_count = 0;
	c->is_dirty = 0;
	return 0;
}

/* Returns -1 when the connection is over. */
static int serve(struct connection *c)
{
	if (c->is_dirty) {
		if (flush(c) < 0)
			return -1;
		/* What arrived before the socket was full waits in the buffer. */
		parse(c);
		return c->is_dirty ? flush(c) : 0;
	}
	uint32_t left = c->tail - c->head;
	if (c->missing == 0 && c->head > 0) {
		memmove(c->buffer, c->buffer + c->head, left);
		c->head = 0;
		c->tail = left;
	} else if (c->missing > 0) {
		c->head = c->tail = 0;
	}
	struct iovec in[2] = { { c->place, c->missing }, { c->buffer + c->tail, RECEIVE - c->tail } };
	struct msghdr message = { .msg_iov = c->missing ? in : in + 1, .msg_iovlen = c->missing ? 2 : 1 };
	ssize_t size = recvmsg(c->fd, &message, MSG_DONTWAIT);
	if (size < 0)
		return errno == EAGAIN ? 0 : -1;
	if (size == 0)
		return -1;
	uint32_t placed = (uint32_t)size < c->missing ? (uint32_t)size : c->missing;
	c->place += placed;
	c->missing -= placed;
	c->tail += size - placed;
	uint32_t before;
	do {
		before = c->head;
		parse(c);
		if (c->is_dirty && flush(c) < 0)
			return -1;
	} while (!c->is_dirty && c->head != before);
	return 0;
}

int main(int argc, char **argv)
{
	memory_size = (argc > 1 ? strtoull(argv[1], NULL, 10) : 256) << 20;
	memory = mmap(NULL, memory_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t length = sizeof address;
	if (memory == MAP_FAILED || bind(listener, (void *)&address, length) < 0 || listen(listener, 128) < 0)
		return 1;
	getsockname(listener, (void *)&address, &length);
	printf("%d\n", ntohs(address.sin_port));
	fflush(stdout);
	epoll = epoll_create1(0);
	struct epoll_event event = { .events = EPOLLIN, .data.ptr = NULL }, events[64];
	epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event);
	for (;;) {
		int count = epoll_wait(epoll, events, 64, 0);
		for (int i = 0; i < count; i++) {
			struct connection *c = events[i].data.ptr;
			if (c == NULL) {
				int one = 1;
				int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
				if (fd < 0)
					continue;
				setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
				c = calloc(1, sizeof *c);
				c->fd = fd;
				c->sq_size = 1;
				event = (struct epoll_event){ .events = EPOLLIN, .data.ptr = c };
				epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
				continue;
			}
			if (serve(c) < 0) {
				close(c->fd);
				free(c);
			} else if (c->is_dirty != c->epoll_out) {
				c->epoll_out = c->is_dirty;
				event.events = c->is_dirty ? EPOLLOUT : EPOLLIN;
				event.data.ptr = c;
				epoll_ctl(epoll, EPOLL_CTL_MOD, c->fd, &event);
			}
		}
	}
}
