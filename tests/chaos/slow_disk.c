/* Preloaded into the driver of a chaos run: while the file TRIALRUN_SLOW_CONTROL exists, every
   write to a file below TRIALRUN_SLOW_FOLDER, and every fsync of one, takes 0.2 s longer. Each
   delayed call adds a byte to TRIALRUN_SLOW_COUNTER: the witness. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

#define DELAY_US 200000

static void delay(int fd) {
    const char *control = getenv("TRIALRUN_SLOW_CONTROL");
    const char *folder = getenv("TRIALRUN_SLOW_FOLDER");
    const char *counter = getenv("TRIALRUN_SLOW_COUNTER");
    char link[64], path[4096];
    if (!control || !folder || !counter || access(control, F_OK) != 0) return;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return;
    path[length] = 0;
    if (strncmp(path, folder, strlen(folder)) != 0) return;
    usleep(DELAY_US);
    int out = open(counter, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    if (out >= 0) {
        syscall(SYS_write, out, ".", 1);
        close(out);
    }
}

ssize_t write(int fd, const void *bytes, size_t count) {
    delay(fd);
    return syscall(SYS_write, fd, bytes, count);
}

int fsync(int fd) {
    delay(fd);
    return (int)syscall(SYS_fsync, fd);
}
