/* Preloaded into a redis-server, so that a test can move its clock while it runs.
 *
 * The file that AIRWAVE_TEST_CLOCK names holds how many microseconds the clock is ahead, as eight bytes in the
 * machine's order. It is mapped, not read, so a look at the clock allocates nothing. (libfaketime does, and a server
 * that is linked with jemalloc does not survive that.) Timers count from another clock, which is left alone. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile int64_t none;
static volatile int64_t *ahead = &none;

__attribute__((constructor)) static void begin(void) {
  const char *path = getenv("AIRWAVE_TEST_CLOCK");
  int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
  if (file < 0) return;
  void *mapped = mmap(NULL, sizeof(int64_t), PROT_READ, MAP_SHARED, file, 0);
  if (mapped != MAP_FAILED) ahead = mapped;
  close(file);
}

int clock_gettime(clockid_t id, struct timespec *now) {
  int failed = (int)syscall(SYS_clock_gettime, id, now);
  if (failed || (id != CLOCK_REALTIME && id != CLOCK_REALTIME_COARSE)) return failed;
  int64_t nanos = now->tv_nsec + (*ahead % 1000000) * 1000;
  now->tv_sec += *ahead / 1000000;
  if (nanos < 0) nanos += 1000000000, now->tv_sec -= 1;
  if (nanos >= 1000000000) nanos -= 1000000000, now->tv_sec += 1;
  now->tv_nsec = nanos;
  return 0;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
  (void)zone;
  struct timespec exact;
  clock_gettime(CLOCK_REALTIME, &exact);
  now->tv_sec = exact.tv_sec;
  now->tv_usec = exact.tv_nsec / 1000;
  return 0;
}

time_t time(time_t *result) {
  struct timespec exact;
  clock_gettime(CLOCK_REALTIME, &exact);
  if (result) *result = exact.tv_sec;
  return exact.tv_sec;
}
