/* A model server without a model, as cheap as can be: it must never be the bottleneck of the benchmark.

   upstream PORT [CHUNKS] [DELAY_US]

   Answers every POST on 127.0.0.1:PORT. A body with "stream":true gets CHUNKS server-sent events (64), one write each,
   DELAY_US microseconds apart (0: back to back), then the finish chunk, the usage chunk and [DONE]; any other body gets one
   JSON answer. Each event's text carries the monotonic time at which it was written, so that the load generator can tell how
   long it was on its way. Ends with SIGTERM. One thread, epoll. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

#define MAX_FD 4096
#define BUFFER 65536

typedef struct {
    char in[BUFFER];
    int used;
    int left;            /* events still to write; 0: idle */
    int64_t next_ns;     /* when the next one is due */
} Connection;

static Connection *connections[MAX_FD];
static int chunks = 64;
static int64_t delay_ns = 0;

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void send_all(int fd, const char *data, int size) {
    while (size > 0) {
        int n = send(fd, data, size, MSG_NOSIGNAL);
        if (n < 0) {
            if (errno == EAGAIN) { struct timespec t = {0, 50000}; nanosleep(&t, NULL); continue; }
            return;
        }
        data += n;
        size -= n;
    }
}

static void send_chunk(int fd, const char *text, int size) {
    char out[1024];
    int n = snprintf(out, sizeof out, "%x\r\n%.*s\r\n", size, size, text);
    send_all(fd, out, n);
}

static void send_event(int fd, Connection *c) {
    char event[700];
    int n;
    if (c->left > 2) {
        n = snprintf(event, sizeof event,
            "data: {\"id\":\"chatcmpl-0123456789\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,\"model\":\"mock\","
            "\"choices\":[{\"index\":0,\"delta\":{%s\"content\":\" @%lld@\"},\"logprobs\":null,\"finish_reason\":null}]}\n\n",
            c->left == chunks + 2 ? "\"role\":\"assistant\"," : "", (long long)now_ns());
    } else if (c->left == 2) {
        n = snprintf(event, sizeof event,
            "data: {\"id\":\"chatcmpl-0123456789\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,\"model\":\"mock\","
            "\"choices\":[{\"index\":0,\"delta\":{},\"logprobs\":null,\"finish_reason\":\"stop\"}]}\n\n");
    } else {
        n = snprintf(event, sizeof event,
            "data: {\"id\":\"chatcmpl-0123456789\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,\"model\":\"mock\","
            "\"choices\":[],\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":%d,\"total_tokens\":%d}}\n\n", chunks, chunks + 9);
    }
    send_chunk(fd, event, n);
    if (--c->left == 0) {
        send_chunk(fd, "data: [DONE]\n\n", 14);
        send_all(fd, "0\r\n\r\n", 5);
    }
}

static void begin(int fd, Connection *c, int stream) {
    static const char body[] =
        "{\"id\":\"chatcmpl-0123456789\",\"object\":\"chat.completion\",\"created\":1700000000,\"model\":\"mock\",\"choices\":"
        "[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"Hello there.\"},\"finish_reason\":\"stop\"}],"
        "\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":3,\"total_tokens\":12}}";
    char out[1024];
    if (!stream) {
        int n = snprintf(out, sizeof out,
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", (int)sizeof body - 1, body);
        send_all(fd, out, n);
        return;
    }
    int n = snprintf(out, sizeof out,
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n");
    send_all(fd, out, n);
    c->left = chunks + 2;
    c->next_ns = now_ns() + delay_ns;
    if (delay_ns == 0) while (c->left) send_event(fd, c);
}

/* Takes one request off the buffer if it is whole; 1 if so. */
static int take(int fd, Connection *c) {
    c->in[c->used] = 0;
    char *end = strstr(c->in, "\r\n\r\n");
    if (!end) return 0;
    char *length = strcasestr(c->in, "content-length:");
    int body = length && length < end ? atoi(length + 15) : 0;
    int whole = (int)(end - c->in) + 4 + body;
    if (c->used < whole) return 0;
    int stream = 0;
    for (char *p = end; (p = memmem(p, c->in + whole - p, "\"stream\"", 8)); p += 8) {
        char *q = p + 8;
        while (*q == ' ' || *q == ':') q++;
        if (!strncmp(q, "true", 4)) stream = 1;
    }
    memmove(c->in, c->in + whole, c->used - whole);
    c->used -= whole;
    begin(fd, c, stream);
    return 1;
}

int main(int argc, char **argv) {
    int port = atoi(argv[1]), one = 1;
    if (argc > 2) chunks = atoi(argv[2]);
    if (argc > 3) delay_ns = atoll(argv[3]) * 1000;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 1024)) { perror("bind"); return 1; }
    int loop = epoll_create1(0);
    struct epoll_event ev = {.events = EPOLLIN, .data.fd = listener}, found[256];
    epoll_ctl(loop, EPOLL_CTL_ADD, listener, &ev);
    int active = 0, top = 0;
    for (;;) {
        int count = epoll_wait(loop, found, 256, active && delay_ns ? 1 : -1);
        for (int i = 0; i < count; i++) {
            int fd = found[i].data.fd;
            if (fd == listener) {
                int fresh;
                while ((fresh = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
                    if (fresh >= MAX_FD) { close(fresh); continue; }
                    setsockopt(fresh, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
                    connections[fresh] = calloc(1, sizeof(Connection));
                    ev.data.fd = fresh;
                    epoll_ctl(loop, EPOLL_CTL_ADD, fresh, &ev);
                    if (fresh > top) top = fresh;
                }
                continue;
            }
            Connection *c = connections[fd];
            int n = recv(fd, c->in + c->used, BUFFER - 1 - c->used, 0);
            if (n <= 0) {
                if (n < 0 && errno == EAGAIN) continue;
                close(fd);
                free(c);
                connections[fd] = NULL;
                continue;
            }
            c->used += n;
            while (!c->left && take(fd, c)) {}
        }
        if (delay_ns) {
            active = 0;
            int64_t now = now_ns();
            for (int fd = 0; fd <= top; fd++) {
                Connection *c = connections[fd];
                if (!c || !c->left) continue;
                while (c->left && c->next_ns <= now) { send_event(fd, c); c->next_ns += delay_ns; }
                if (c->left) active = 1; else while (!c->left && c->used && take(fd, c)) active = 1;
            }
        }
        for (int i = 0; i < count; i++) if (found[i].data.fd != listener && connections[found[i].data.fd] && connections[found[i].data.fd]->left) active = 1;
    }
}
