/*
 * A library for LD_PRELOAD: a disk that fails, writes less than asked, is interrupted, or tells what it was told to keep.
 *
 * It concerns files under FAULTY_FOLDER (a real path). It reaches programs that call libc for each write: Python, Rust's and
 * C++'s streams. It does not reach programs that are linked statically (Ollama, other Go programs), nor what libc's own
 * fwrite(3) writes; for those there is a file system of a few MB, and RLIMIT_FSIZE.
 *
 *   FAULTY_CALL     write | sync | rename | open | truncate: which calls fail; together: write,sync
 *   FAULTY_ERRNO    with which number
 *   FAULTY_MATCH    only files whose path holds this text
 *   FAULTY_AFTER    this many such calls of a process succeed first (0)
 *   FAULTY_ONCE     a folder that remembers: each file fails in one process only, so that a retry succeeds
 *   FAULTY_SHORT    a seed: some writes take fewer bytes than asked, some are interrupted (EINTR) before any
 *   FAULTY_JOURNAL  a file (outside the folder) that is told, a line each, what is created, linked, renamed, removed, synced
 *   FAULTY_STOP     bytes of the journal after which each process that would add to it stops (SIGSTOP)
 *   FAULTY_KEPT     a folder (outside, on the same disk) that keeps a name of what is removed or replaced
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define REAL(result, name, ...)                                        \
    static result (*real)(__VA_ARGS__);                                \
    if (!real) real = (result (*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name)

static const char *folder;
static size_t folder_length;
static int journal = -1;
static unsigned kept_count;

static const char *setting(const char *name) {
    const char *value = getenv(name);
    return value && *value ? value : NULL;
}

__attribute__((constructor)) static void begin(void) {
    folder = setting("FAULTY_FOLDER");
    folder_length = folder ? strlen(folder) : 0;
}

/* Paths --------------------------------------------------------------------------------------------------------------- */

/* The absolute path of a name that need not exist: its folder resolved, the name itself not followed. */
static int absolute(int at, const char *name, char *path) {
    char whole[PATH_MAX], resolved[PATH_MAX];
    if (name[0] == '/') {
        snprintf(whole, sizeof whole, "%s", name);
    } else {
        char link[64];
        ssize_t length;
        if (at == AT_FDCWD)
            snprintf(link, sizeof link, "/proc/self/cwd");
        else
            snprintf(link, sizeof link, "/proc/self/fd/%d", at);
        length = readlink(link, resolved, sizeof resolved - 1);
        if (length < 0) return 0;
        resolved[length] = 0;
        if (snprintf(whole, sizeof whole, "%s/%s", resolved, name) >= (int)sizeof whole) return 0;
    }
    while (strlen(whole) > 1 && whole[strlen(whole) - 1] == '/') whole[strlen(whole) - 1] = 0;
    char *last = strrchr(whole, '/');
    if (!last) return 0;
    char base[NAME_MAX + 1];
    if (strlen(last + 1) > NAME_MAX) return 0;
    strcpy(base, last + 1);
    *last = 0;
    int saved = errno;
    if (!realpath(*whole ? whole : "/", resolved)) {
        errno = saved;
        return 0;
    }
    errno = saved;
    return snprintf(path, PATH_MAX, "%s/%s", resolved, base) < PATH_MAX;
}

static int inside(const char *path) {
    return folder && !strncmp(path, folder, folder_length) && (path[folder_length] == '/' || !path[folder_length]);
}

/* Whether an open file is one of the folder's; then its path is there. */
static int of_descriptor(int descriptor, char *path) {
    if (!folder) return 0;
    char link[64];
    int saved = errno;
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    errno = saved;
    if (length < 0) return 0;
    path[length] = 0;
    return inside(path);
}

static int at_name(int at, const char *name, char *path) { return folder && name && absolute(at, name, path) && inside(path); }

/* Failing ------------------------------------------------------------------------------------------------------------- */

/* The name of a file without what differs from attempt to attempt: HOST.PROCESS.tmp at the end of a temporary one's. */
static void steady(const char *path, char *name) {
    snprintf(name, 240, "%s", path + folder_length);
    for (char *at = name; *at; at++)
        if (*at == '/') *at = '+';
    size_t length = strlen(name);
    if (length < 4 || strcmp(name + length - 4, ".tmp")) return;
    for (int dots = 0; dots < 3; dots++) {
        char *dot = strrchr(name, '.');
        if (!dot || dot == name) return;
        *dot = 0;
    }
}

static int fails_once(const char *path) {
    static int full; /* a disk that is full stays so for the process that met it */
    const char *once = setting("FAULTY_ONCE");
    if (!once || full) return 1;
    char name[256], mark[PATH_MAX];
    steady(path, name);
    snprintf(mark, sizeof mark, "%s/%s", once, name);
    int saved = errno;
    int made = syscall(SYS_openat, AT_FDCWD, mark, O_CREAT | O_EXCL | O_WRONLY, 0644);
    errno = saved;
    if (made < 0) return 0;
    syscall(SYS_close, made);
    return full = 1;
}

static int fails(const char *call, const char *path) {
    static unsigned seen;
    const char *calls = setting("FAULTY_CALL"), *match = setting("FAULTY_MATCH"), *after = setting("FAULTY_AFTER");
    if (!calls || !strstr(calls, call) || (match && !strstr(path, match))) return 0;
    if (after && __atomic_fetch_add(&seen, 1, __ATOMIC_RELAXED) < (unsigned)atoi(after)) return 0;
    if (!fails_once(path)) return 0;
    errno = atoi(setting("FAULTY_ERRNO") ? setting("FAULTY_ERRNO") : "28");
    return 1;
}

/* How many bytes a write takes now; -1 where it is interrupted before any. */
static ssize_t taken(size_t asked) {
    static uint64_t state;
    static int interrupted;
    const char *seed = setting("FAULTY_SHORT");
    if (!seed || asked < 2) return asked;
    if (!state) state = strtoull(seed, NULL, 10) * 2654435761u + 88172645463325252ull;
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    if (state % 8 == 0 && !interrupted) {
        interrupted = 1;
        errno = EINTR;
        return -1;
    }
    interrupted = 0;
    return state % 3 == 0 ? (ssize_t)(1 + (state >> 8) % (asked - 1)) : (ssize_t)asked;
}

/* The journal --------------------------------------------------------------------------------------------------------- */

static void tell(const char *event, const char *path, const char *other, const struct stat *status, unsigned kept) {
    const char *file = setting("FAULTY_JOURNAL");
    if (!file) return;
    int saved = errno;
    if (journal < 0) {
        int opened = syscall(SYS_openat, AT_FDCWD, file, O_CREAT | O_APPEND | O_WRONLY | O_CLOEXEC, 0644);
        journal = opened < 0 ? -1 : fcntl(opened, F_DUPFD_CLOEXEC, 500);
        if (journal < 0) journal = opened;
        else syscall(SYS_close, opened);
    }
    char line[3 * PATH_MAX];
    int length = snprintf(line, sizeof line, "%s\t%s\t%s\t%llu\t%lld\t%lld.%09ld\t%d.%u\n", event, path, other ? other : "",
                          status ? (unsigned long long)status->st_ino : 0, status ? (long long)status->st_size : 0,
                          status ? (long long)status->st_mtim.tv_sec : 0, status ? status->st_mtim.tv_nsec : 0, getpid(), kept);
    if (syscall(SYS_write, journal, line, length) != length) {
        /* Somebody has closed what is not theirs; once more from the beginning. */
        journal = syscall(SYS_openat, AT_FDCWD, file, O_CREAT | O_APPEND | O_WRONLY | O_CLOEXEC, 0644);
        if (syscall(SYS_write, journal, line, length) != length) abort();
    }
    if (setting("FAULTY_STOP") && lseek(journal, 0, SEEK_CUR) >= atoll(setting("FAULTY_STOP"))) raise(SIGSTOP);
    errno = saved;
}

/* Keep a name of a file that is about to lose one; return its number, 0 if there is nothing to keep. */
static unsigned keep(const char *path) {
    const char *kept = setting("FAULTY_KEPT");
    char other[PATH_MAX];
    if (!kept) return 0;
    int saved = errno;
    unsigned number = __atomic_add_fetch(&kept_count, 1, __ATOMIC_RELAXED);
    snprintf(other, sizeof other, "%s/%d.%u", kept, getpid(), number);
    if (syscall(SYS_linkat, AT_FDCWD, path, AT_FDCWD, other, 0) < 0) number = 0;
    errno = saved;
    return number;
}

static void tell_status(const char *event, const char *path) {
    struct stat status;
    int saved = errno;
    if (setting("FAULTY_JOURNAL") && !lstat(path, &status)) tell(event, path, NULL, &status, 0);
    errno = saved;
}

/* Calls: opening ------------------------------------------------------------------------------------------------------ */

static int exists(const char *path) {
    struct stat status;
    int saved = errno, found = !lstat(path, &status);
    errno = saved;
    return found;
}

static int opened(int at, const char *name, int flags, mode_t mode) {
    char path[PATH_MAX];
    int ours = (flags & (O_WRONLY | O_RDWR | O_CREAT)) && at_name(at, name, path);
    if (ours && fails("open", path)) return -1;
    int is_new = ours && (flags & O_CREAT) && !exists(path);
    int result = syscall(SYS_openat, at, name, flags, mode);
    if (result >= 0 && is_new) tell_status("create", path);
    return result;
}

#define MODE(flags, last)                       \
    mode_t mode = 0;                            \
    if ((flags) & (O_CREAT | O_TMPFILE)) {      \
        va_list list;                           \
        va_start(list, last);                   \
        mode = va_arg(list, mode_t);            \
        va_end(list);                           \
    }

int open(const char *name, int flags, ...) {
    MODE(flags, flags)
    return opened(AT_FDCWD, name, flags, mode);
}
int open64(const char *name, int flags, ...) {
    MODE(flags, flags)
    return opened(AT_FDCWD, name, flags | O_LARGEFILE, mode);
}
int openat(int at, const char *name, int flags, ...) {
    MODE(flags, flags)
    return opened(at, name, flags, mode);
}
int openat64(int at, const char *name, int flags, ...) {
    MODE(flags, flags)
    return opened(at, name, flags | O_LARGEFILE, mode);
}
int creat(const char *name, mode_t mode) { return opened(AT_FDCWD, name, O_CREAT | O_WRONLY | O_TRUNC, mode); }
int creat64(const char *name, mode_t mode) { return creat(name, mode); }

static FILE *stream(FILE *(*real)(const char *, const char *), const char *name, const char *how) {
    char path[PATH_MAX];
    int ours = strpbrk(how, "wa+") && at_name(AT_FDCWD, name, path);
    if (ours && fails("open", path)) return NULL;
    int is_new = ours && !exists(path);
    FILE *result = real(name, how);
    if (result && is_new) tell_status("create", path);
    return result;
}
FILE *fopen(const char *name, const char *how) {
    REAL(FILE *, fopen, const char *, const char *);
    return stream(real, name, how);
}
FILE *fopen64(const char *name, const char *how) {
    REAL(FILE *, fopen64, const char *, const char *);
    return stream(real, name, how);
}

/* Calls: writing ------------------------------------------------------------------------------------------------------ */

ssize_t write(int descriptor, const void *data, size_t size) {
    char path[PATH_MAX];
    if (of_descriptor(descriptor, path)) {
        if (fails("write", path)) return -1;
        ssize_t less = taken(size);
        if (less < 0) return -1;
        size = less;
    }
    return syscall(SYS_write, descriptor, data, size);
}
ssize_t pwrite64(int descriptor, const void *data, size_t size, off64_t offset) {
    char path[PATH_MAX];
    if (of_descriptor(descriptor, path)) {
        if (fails("write", path)) return -1;
        ssize_t less = taken(size);
        if (less < 0) return -1;
        size = less;
    }
    return syscall(SYS_pwrite64, descriptor, data, size, offset);
}
ssize_t pwrite(int descriptor, const void *data, size_t size, off_t offset) {
    return pwrite64(descriptor, data, size, offset);
}
ssize_t writev(int descriptor, const struct iovec *parts, int count) {
    char path[PATH_MAX];
    if (of_descriptor(descriptor, path)) {
        if (fails("write", path)) return -1;
        if (setting("FAULTY_SHORT") && count > 0) {
            for (int part = 0; part < count; part++)
                if (parts[part].iov_len) return write(descriptor, parts[part].iov_base, parts[part].iov_len);
        }
    }
    return syscall(SYS_writev, descriptor, parts, count);
}
ssize_t sendfile64(int to, int from, off64_t *offset, size_t size) {
    char path[PATH_MAX];
    if (of_descriptor(to, path)) {
        if (fails("write", path)) return -1;
        ssize_t less = taken(size);
        if (less < 0) return -1;
        size = less;
    }
    return syscall(SYS_sendfile, to, from, offset, size);
}
ssize_t sendfile(int to, int from, off_t *offset, size_t size) { return sendfile64(to, from, offset, size); }
ssize_t copy_file_range(int from, off64_t *from_offset, int to, off64_t *to_offset, size_t size, unsigned flags) {
    char path[PATH_MAX];
    if (of_descriptor(to, path)) {
        if (fails("write", path)) return -1;
        ssize_t less = taken(size);
        if (less < 0) return -1;
        size = less;
    }
    return syscall(SYS_copy_file_range, from, from_offset, to, to_offset, size, flags);
}
int ftruncate64(int descriptor, off64_t size) {
    char path[PATH_MAX];
    if (of_descriptor(descriptor, path) && fails("truncate", path)) return -1;
    return syscall(SYS_ftruncate, descriptor, size);
}
int ftruncate(int descriptor, off_t size) { return ftruncate64(descriptor, size); }

/* Calls: keeping ------------------------------------------------------------------------------------------------------ */

static int synced(int call, int descriptor) {
    char path[PATH_MAX];
    int ours = of_descriptor(descriptor, path);
    if (ours && fails("sync", path)) return -1;
    int result = syscall(call, descriptor);
    if (ours && !result) tell_status("sync", path);
    return result;
}
int fsync(int descriptor) { return synced(SYS_fsync, descriptor); }
int fdatasync(int descriptor) { return synced(SYS_fdatasync, descriptor); }
static void everything(const char *path) {
    /* Files have the coarse clock's times. */
    struct stat status = {0};
    clock_gettime(CLOCK_REALTIME_COARSE, &status.st_mtim);
    tell("everything", path, NULL, &status, 0);
}
int syncfs(int descriptor) {
    char path[PATH_MAX];
    int ours = of_descriptor(descriptor, path);
    if (ours && fails("sync", path)) return -1;
    int result = syscall(SYS_syncfs, descriptor);
    if (ours && !result) everything(path);
    return result;
}
void sync(void) {
    syscall(SYS_sync);
    if (folder) everything(folder);
}

/* Calls: names -------------------------------------------------------------------------------------------------------- */

static int renamed(int from_at, const char *from, int to_at, const char *to, unsigned flags) {
    char source[PATH_MAX], target[PATH_MAX];
    int ours = at_name(to_at, to, target) && absolute(from_at, from, source);
    if (ours && fails("rename", target)) return -1;
    unsigned kept = ours && exists(target) ? keep(target) : 0;
    int result = syscall(SYS_renameat2, from_at, from, to_at, to, flags);
    if (ours && !result) tell("rename", source, target, NULL, kept);
    return result;
}
int rename(const char *from, const char *to) { return renamed(AT_FDCWD, from, AT_FDCWD, to, 0); }
int renameat(int from_at, const char *from, int to_at, const char *to) { return renamed(from_at, from, to_at, to, 0); }
int renameat2(int from_at, const char *from, int to_at, const char *to, unsigned flags) {
    return renamed(from_at, from, to_at, to, flags);
}

static int removed(int at, const char *name, int flags) {
    char path[PATH_MAX];
    int ours = at_name(at, name, path);
    unsigned kept = ours && !(flags & AT_REMOVEDIR) ? keep(path) : 0;
    int result = syscall(SYS_unlinkat, at, name, flags);
    if (ours && !result) tell(flags & AT_REMOVEDIR ? "rmdir" : "unlink", path, NULL, NULL, kept);
    return result;
}
int unlink(const char *name) { return removed(AT_FDCWD, name, 0); }
int unlinkat(int at, const char *name, int flags) { return removed(at, name, flags); }
int rmdir(const char *name) { return removed(AT_FDCWD, name, AT_REMOVEDIR); }
int remove(const char *name) {
    struct stat status;
    if (lstat(name, &status)) return -1;
    return removed(AT_FDCWD, name, S_ISDIR(status.st_mode) ? AT_REMOVEDIR : 0);
}

static int linked(const char *event, int result, int at, const char *name) {
    char path[PATH_MAX];
    if (!result && at_name(at, name, path)) tell_status(event, path);
    return result;
}
int mkdir(const char *name, mode_t mode) { return linked("mkdir", syscall(SYS_mkdirat, AT_FDCWD, name, mode), AT_FDCWD, name); }
int mkdirat(int at, const char *name, mode_t mode) { return linked("mkdir", syscall(SYS_mkdirat, at, name, mode), at, name); }
int link(const char *from, const char *to) {
    return linked("create", syscall(SYS_linkat, AT_FDCWD, from, AT_FDCWD, to, 0), AT_FDCWD, to);
}
int linkat(int from_at, const char *from, int to_at, const char *to, int flags) {
    return linked("create", syscall(SYS_linkat, from_at, from, to_at, to, flags), to_at, to);
}
int symlink(const char *target, const char *name) {
    return linked("create", syscall(SYS_symlinkat, target, AT_FDCWD, name), AT_FDCWD, name);
}
int symlinkat(const char *target, int at, const char *name) {
    return linked("create", syscall(SYS_symlinkat, target, at, name), at, name);
}

/* Times of files that somebody sets say nothing of their bytes; who looks at the journal must know. */
int utimensat(int at, const char *name, const struct timespec times[2], int flags) {
    char path[PATH_MAX];
    struct stat before, after;
    int ours = setting("FAULTY_JOURNAL") && at_name(at, name, path) && !lstat(path, &before);
    int result = syscall(SYS_utimensat, at, name, times, flags);
    if (ours && !result && !lstat(path, &after)) {
        tell("timed", path, NULL, &before, 0);
        tell("time", path, NULL, &after, 0);
    }
    return result;
}
int utimes(const char *name, const struct timeval times[2]) {
    struct timespec fine[2];
    for (int one = 0; times && one < 2; one++) fine[one] = (struct timespec){times[one].tv_sec, times[one].tv_usec * 1000};
    return utimensat(AT_FDCWD, name, times ? fine : NULL, 0);
}
