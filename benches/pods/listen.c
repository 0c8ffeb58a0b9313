// SPDX-License-Identifier: Apache-2.0
// The smallest program that listens: what it takes to start is the pod's own cost.
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

int main(void) {
    static const char answer[] = "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nok\n";
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(8080)};
    char asked[4096];
    int one = 1, door = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(door, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(door, (struct sockaddr *)&at, sizeof at) || listen(door, 64)) return 1;
    for (;;) {
        int guest = accept(door, 0, 0);
        while (guest >= 0 && read(guest, asked, sizeof asked) > 0)
            if (write(guest, answer, strlen(answer)) < 0) break;
        close(guest);
    }
}
