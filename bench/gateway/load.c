/* A closed-loop load generator: CONNECTIONS keep-alive connections, each asks again as soon as its answer is whole.

   load PORT CONNECTIONS SECONDS FILE

   FILE holds one whole HTTP request, sent as it is. Understands Content-Length and chunked answers, which is all that servers
   of this kind send. An answer counts as failed when its status is not 200, when its connection ends early, or when a stream
   ends without [DONE]. Prints one line of JSON: requests, failed, seconds, latency percentiles in microseconds, and, where the
   answer holds the upstream's time stamps ("@nanoseconds@"), how long the pieces were on their way. One thread, epoll. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

#define BUFFER 262144
#define MAX_SAMPLES 4000000

typedef struct {
    int fd, used, seen;      /* seen: bytes already searched for time stamps */
    int64_t begun;
    char in[BUFFER + 1];
} Connection;

static char request[65536];
static int request_size;
static double *latencies, *transits;
static long done, failed, stamps;
static struct sockaddr_in address;
static int loop_fd;

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void ask(Connection *c) {
    c->used = c->seen = 0;
    c->begun = now_ns();
    if (send(c->fd, request, request_size, MSG_NOSIGNAL) != request_size) failed++;
}

static void reconnect(Connection *c) {
    int one = 1;
    if (c->fd >= 0) close(c->fd);
    c->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(c->fd, (struct sockaddr *)&address, sizeof address)) { perror("connect"); exit(1); }
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    struct epoll_event ev = {.events = EPOLLIN, .data.ptr = c};
    epoll_ctl(loop_fd, EPOLL_CTL_ADD, c->fd, &ev);
    ask(c);
}

static void read_stamps(Connection *c) {
    int64_t now = now_ns();
    for (;;) {
        char *at = memchr(c->in + c->seen, '@', c->used - c->seen);
        if (!at) { c->seen = c->used; return; }
        char *end = memchr(at + 1, '@', c->in + c->used - at - 1);
        if (!end) { c->seen = at - c->in; return; }
        int64_t sent = strtoll(at + 1, NULL, 10);
        if (sent > 1000000 && stamps < MAX_SAMPLES) transits[stamps++] = (now - sent) / 1000.0;
        c->seen = end + 1 - c->in;
    }
}

/* 1: whole; 0: more to come. */
static int whole(Connection *c) {
    c->in[c->used] = 0;
    char *end = memmem(c->in, c->used, "\r\n\r\n", 4);
    if (!end) return 0;
    char saved = *end;
    *end = 0;
    char *length = strcasestr(c->in, "content-length:");
    int chunked = strcasestr(c->in, "transfer-encoding: chunked") != NULL;
    int size = length ? atoi(length + 15) : -1;
    *end = saved;
    if (size >= 0) return c->used >= end - c->in + 4 + size;
    if (chunked) return c->used >= 5 && !memcmp(c->in + c->used - 5, "0\r\n\r\n", 5);
    return 0;
}

static int good(Connection *c) {
    if (c->used < 12 || memcmp(c->in + 9, "200", 3)) return 0;
    if (memmem(c->in, c->used, "text/event-stream", 17)) return memmem(c->in, c->used, "[DONE]", 6) != NULL;
    return 1;
}

static int compare(const void *a, const void *b) {
    double d = *(const double *)a - *(const double *)b;
    return (d > 0) - (d < 0);
}

static double percentile(double *sorted, long count, double p) {
    return count ? sorted[(long)(p * (count - 1))] : 0;
}

int main(int argc, char **argv) {
    int count = atoi(argv[2]);
    double seconds = atof(argv[3]);
    FILE *file = fopen(argv[4], "rb");
    if (!file || argc != 5) return 2;
    request_size = fread(request, 1, sizeof request, file);
    latencies = malloc(sizeof(double) * MAX_SAMPLES);
    transits = malloc(sizeof(double) * MAX_SAMPLES);
    address = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(atoi(argv[1])), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    loop_fd = epoll_create1(0);
    Connection *all = calloc(count, sizeof(Connection));
    for (int i = 0; i < count; i++) { all[i].fd = -1; reconnect(&all[i]); }
    int64_t begun = now_ns(), until = begun + (int64_t)(seconds * 1e9);
    struct epoll_event found[256];
    while (now_ns() < until) {
        int n = epoll_wait(loop_fd, found, 256, 100);
        for (int i = 0; i < n; i++) {
            Connection *c = found[i].data.ptr;
            int got = recv(c->fd, c->in + c->used, BUFFER - c->used, 0);
            if (got <= 0 || c->used + got >= BUFFER) { failed++; reconnect(c); continue; }
            c->used += got;
            read_stamps(c);
            if (!whole(c)) continue;
            if (!good(c)) {
                if (!failed) fprintf(stderr, "first failed answer: %.300s\n", c->in);
                failed++;
            } else if (done < MAX_SAMPLES) latencies[done++] = (now_ns() - c->begun) / 1000.0;
            if (strcasestr(c->in, "connection: close")) reconnect(c); else ask(c);
        }
    }
    double took = (now_ns() - begun) / 1e9;
    qsort(latencies, done, sizeof(double), compare);
    qsort(transits, stamps, sizeof(double), compare);
    printf("{\"requests\": %ld, \"failed\": %ld, \"seconds\": %.3f, \"p50_us\": %.1f, \"p99_us\": %.1f, "
           "\"pieces\": %ld, \"piece_p50_us\": %.1f, \"piece_p99_us\": %.1f}\n",
           done, failed, took, percentile(latencies, done, 0.5), percentile(latencies, done, 0.99), stamps,
           percentile(transits, stamps, 0.5), percentile(transits, stamps, 0.99));
    return 0;
}
