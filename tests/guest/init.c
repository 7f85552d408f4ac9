/*
 * The guest's only process: /init of the initramfs of the guest tests
 *
 * It loads the modules found in /modules, opens the disks by their serial
 * numbers disk0, disk1, ... and starts one writer for each, and one
 * process that keeps changing memory.  More processes write zeroes where zeroes
 * are, at a rate that the host may set at any time, and, with the setting
 * 'scribblers', others write to random pages at the end of each disk.  All talk
 * to the host by lines on the serial console:
 *
 *   READY <disks>          all writers are about to start
 *   W <disk> <sequence> <us>   this record is on the disk: fdatasync returned
 *                          after that many microseconds
 *   M <scan>               one full check of the memory found no damage
 *   E <text>               something is wrong; the process that says so stops
 *
 * and the host may say there
 *
 *   load <n>               so write n MiB per second to each disk
 *   poweroff               at once
 *   reboot                 at once
 *   panic                  report a panic to the device pvpanic, and continue
 *
 * Settings come from the kernel's command line as environment variables.
 *
 * A record never takes the place of another one: see record_offset().  The
 * host computes the same in guestlib/layout.py.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/fs.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/io.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#define RECORD_SIZE     4096
#define RECORD_MAGIC    0x44524345525f5447ULL   /* "GT_RECRD" */
#define CHUNK_RECORDS   16      /* records that follow each other on disk */
#define CHUNK_STRIDE    6367    /* odd, so it visits every chunk once */
#define PAGE            4096
#define MIB             (1024 * 1024)
#define MAX_DISKS       8
#define READ_BACK_EVERY 8
#define PVPANIC_PORT    0x505
#define PVPANIC_PANICKED 1
#define LOAD_WRITERS    4       /* of each disk: so many requests at once */
#define SCRIBBLED_PAGES 256     /* few, so that writes often overlap */

typedef struct Record {
    uint64_t magic;
    uint64_t sequence;
    uint32_t disk;
    uint32_t crc;               /* of the whole record, with 0 in here */
    uint64_t payload[(RECORD_SIZE - 24) / 8];
} Record;

_Static_assert(sizeof(Record) == RECORD_SIZE, "a record is one page");

static uint32_t crc_table[256];

/* MiB per second that the load writers of a disk write; shared by all. */
static volatile uint64_t *load_mb_per_s;

/* One write per line, so that lines of different processes do not mix. */
static void __attribute__((format(printf, 1, 2))) say(const char *fmt, ...)
{
    char line[256];
    va_list ap;
    int len;

    va_start(ap, fmt);
    len = vsnprintf(line, sizeof(line), fmt, ap);
    va_end(ap);
    if (len >= (int)sizeof(line)) {
        len = sizeof(line) - 1;
    }
    if (write(STDOUT_FILENO, line, len) != len) {
        _exit(1);
    }
}

static void __attribute__((noreturn)) give_up(const char *what, uint64_t where)
{
    say("E %s %" PRIu64 ": %s\n", what, where, strerror(errno));
    _exit(1);
}

static uint64_t setting(const char *name, uint64_t unset)
{
    const char *text = getenv(name);
    uint64_t value;

    return text && sscanf(text, "%" SCNu64, &value) == 1 ? value : unset;
}

static void crc_init(void)
{
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t c = i;

        for (int bit = 0; bit < 8; bit++) {
            c = c & 1 ? 0xedb88320 ^ (c >> 1) : c >> 1;
        }
        crc_table[i] = c;
    }
}

static uint32_t crc32(const void *data, size_t len)
{
    const uint8_t *p = data;
    uint32_t c = ~0u;

    while (len--) {
        c = crc_table[(c ^ *p++) & 0xff] ^ (c >> 8);
    }
    return ~c;
}

/* splitmix64's finaliser: neighbours give unrelated values */
static uint64_t mix(uint64_t x)
{
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
    return x ^ (x >> 31);
}

/*
 * Where a record goes: CHUNK_RECORDS neighbours fill one chunk of 64 KiB, and
 * the chunks are spread over the whole disk, so that writes land before and
 * behind the place that a mirror has reached.  Needs a power of two of chunks.
 */
static uint64_t record_offset(uint64_t sequence, uint64_t chunks)
{
    uint64_t chunk = sequence / CHUNK_RECORDS * CHUNK_STRIDE & (chunks - 1);

    return (chunk * CHUNK_RECORDS + sequence % CHUNK_RECORDS) * RECORD_SIZE;
}

static void record_fill(Record *r, uint32_t disk, uint64_t sequence)
{
    uint64_t word = mix(sequence << 8 | disk);

    r->magic = RECORD_MAGIC;
    r->sequence = sequence;
    r->disk = disk;
    r->crc = 0;
    for (size_t i = 0; i < sizeof(r->payload) / sizeof(r->payload[0]); i++) {
        r->payload[i] = word;
        word += 0x9e3779b97f4a7c15ULL;
    }
    r->crc = crc32(r, sizeof(*r));
}

static void *map_memory(size_t size)
{
    void *p = mmap(NULL, size, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);

    if (p == MAP_FAILED) {
        give_up("mmap", size);
    }
    return p;
}

static uint64_t now_us(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return ts.tv_sec * 1000000ULL + ts.tv_nsec / 1000;
}

static void read_back(int fd, uint32_t disk, uint64_t sequence,
                      uint64_t chunks, Record *got, Record *want)
{
    uint64_t offset = record_offset(sequence, chunks);

    record_fill(want, disk, sequence);
    if (pread(fd, got, sizeof(*got), offset) != sizeof(*got)) {
        give_up("read back, sequence", sequence);
    }
    if (memcmp(got, want, sizeof(*got))) {
        say("E disk %u: record %" PRIu64 " differs when read back\n",
            disk, sequence);
        _exit(1);
    }
}

static void __attribute__((noreturn)) disk_writer(uint32_t disk, int fd)
{
    uint64_t rate = setting("writes_per_s", 200);
    Record *r = map_memory(2 * sizeof(*r));
    uint64_t size, chunks;

    if (ioctl(fd, BLKGETSIZE64, &size)) {
        give_up("BLKGETSIZE64 of disk", disk);
    }
    chunks = size / (CHUNK_RECORDS * RECORD_SIZE);
    if (!chunks || (chunks & (chunks - 1))) {
        say("E disk %u: no power of two of chunks\n", disk);
        _exit(1);
    }
    for (uint64_t seq = 0; seq < chunks / 2 * CHUNK_RECORDS; seq++) {
        uint64_t began;

        record_fill(r, disk, seq);
        began = now_us();
        if (pwrite(fd, r, sizeof(*r), record_offset(seq, chunks)) !=
            sizeof(*r)) {
            give_up("write, sequence", seq);
        }
        if (fdatasync(fd)) {
            give_up("fdatasync, sequence", seq);
        }
        say("W %u %" PRIu64 " %" PRIu64 "\n", disk, seq, now_us() - began);
        if (seq && seq % READ_BACK_EVERY == 0) {
            read_back(fd, disk, mix(seq) % seq, chunks, r, r + 1);
        }
        if (rate) {
            usleep(1000000 / rate);
        }
    }
    say("E disk %u is full\n", disk);
    _exit(1);
}

/*
 * Writes zeroes to chunk after chunk, of those that held zeroes from the
 * beginning (the upper half of the disk) and get no records (half of them).
 */
static void __attribute__((noreturn)) load_writer(unsigned nth, int fd)
{
    size_t len = CHUNK_RECORDS * RECORD_SIZE;
    void *zeroes = map_memory(len);
    uint64_t size, chunks;

    if (ioctl(fd, BLKGETSIZE64, &size)) {
        give_up("BLKGETSIZE64, load writer", nth);
    }
    chunks = size / len;
    for (uint64_t i = nth;; i += LOAD_WRITERS) {
        uint64_t sequence = (chunks / 2 + i % (chunks / 2)) * CHUNK_RECORDS;
        uint64_t offset = record_offset(sequence, chunks);
        uint64_t rate;

        if (offset < size / 2) {
            continue;
        }
        while (!(rate = *load_mb_per_s)) {
            usleep(10000);
        }
        if (pwrite(fd, zeroes, len, offset) != len) {
            give_up("load, chunk", i);
        }
        usleep(LOAD_WRITERS * len / rate);      /* bytes per MB/s are us */
    }
}

/*
 * Writes to random pages at the end of the disk, without pausing.  Their final
 * contents are unpredictable, and previous contents are lost.
 */
static void __attribute__((noreturn)) scribbler(unsigned nth, int fd)
{
    uint64_t *page = map_memory(PAGE);
    uint64_t size;

    if (ioctl(fd, BLKGETSIZE64, &size)) {
        give_up("BLKGETSIZE64, scribbler", nth);
    }
    for (uint64_t i = 0;; i++) {
        uint64_t word = mix(i << 8 | nth);

        for (size_t at = 0; at < PAGE / sizeof(*page); at++) {
            page[at] = word + at;
        }
        if (pwrite(fd, page, PAGE,
                   size - (1 + word % SCRIBBLED_PAGES) * PAGE) != PAGE) {
            give_up("scribble, number", i);
        }
    }
}

/* A page is filled with its number and the pass that wrote it. */
static void page_write(uint8_t *mem, uint64_t page, uint64_t pass)
{
    uint64_t *p = (uint64_t *)(mem + page * PAGE);
    uint64_t word = mix(page << 24 ^ pass);

    for (size_t i = 0; i < PAGE / sizeof(*p); i++) {
        p[i] = word + i;
    }
}

static void page_check(uint8_t *mem, uint64_t page, uint64_t pass)
{
    uint64_t *p = (uint64_t *)(mem + page * PAGE);
    uint64_t word = mix(page << 24 ^ pass);

    for (size_t i = 0; i < PAGE / sizeof(*p); i += 32) {
        if (p[i] != word + i) {
            say("E memory: page %" PRIu64 " word %zu of pass %" PRIu64
                " is damaged\n", page, i, pass);
            _exit(1);
        }
    }
}

/*
 * fill_mb stay as they are once written; dirty_mb are written again and again
 * at dirty_mb_per_s.  Both are checked all the time.
 */
static void __attribute__((noreturn)) memory_writer(void)
{
    uint64_t still = setting("fill_mb", 256) * MIB / PAGE;
    uint64_t hot = setting("dirty_mb", 64) * MIB / PAGE;
    uint64_t tick_pages = setting("dirty_mb_per_s", 20) * MIB / PAGE / 100;
    uint64_t pass = 0, next = 0, scanned = 0, scans = 0;
    uint8_t *mem = map_memory((still + hot) * PAGE);
    uint8_t *hot_mem = mem + still * PAGE;

    for (uint64_t i = 0; i < still; i++) {
        page_write(mem, i, 0);
    }
    for (uint64_t i = 0; i < hot; i++) {
        page_write(hot_mem, i, 0);
    }
    say("M 0\n");
    for (;;) {
        for (uint64_t i = 0; i < tick_pages && hot; i++) {
            page_check(hot_mem, next, pass);
            page_write(hot_mem, next, pass + 1);
            if (++next == hot) {
                next = 0;
                pass++;
            }
        }
        for (uint64_t i = 0; i < 1024 && still; i++) {
            page_check(mem, scanned, 0);
            if (++scanned == still) {
                scanned = 0;
                say("M %" PRIu64 "\n", ++scans);
            }
        }
        usleep(10000);
    }
}

static void load_modules(void)
{
    struct dirent **entries;
    int n = scandir("/modules", &entries, NULL, alphasort);

    for (int i = 0; i < n; i++) {
        char path[512];
        int fd;

        if (entries[i]->d_name[0] == '.') {
            continue;
        }
        snprintf(path, sizeof(path), "/modules/%s", entries[i]->d_name);
        fd = open(path, O_RDONLY);
        if (fd < 0 || syscall(SYS_finit_module, fd, "", 0)) {
            say("E module %s: %s\n", path, strerror(errno));
        }
        close(fd);
    }
}

/* Where the kernel shows the serial number of a disk, after `skip` bytes. */
static const struct {
    const char *prefix, *file;
    unsigned skip;
} kinds[] = {
    { "vd", "serial", 0 },
    { "sd", "device/vpd_pg80", 4 },
};

static int has_serial(const char *device, const char *wanted)
{
    for (unsigned i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
        char path[320], serial[64] = "";
        int fd;

        if (strncmp(device, kinds[i].prefix, 2)) {
            continue;
        }
        snprintf(path, sizeof(path), "/sys/block/%s/%s", device,
                 kinds[i].file);
        fd = open(path, O_RDONLY);
        if (fd < 0) {
            continue;
        }
        if (read(fd, serial, sizeof(serial) - 1) < 0) {
            give_up("serial number of a disk of kind", i);
        }
        close(fd);
        serial[strcspn(serial + kinds[i].skip, "\n") + kinds[i].skip] = 0;
        if (!strcmp(serial + kinds[i].skip, wanted)) {
            return 1;
        }
    }
    return 0;
}

/* Returns -1 while no disk has that number. */
static int open_disk(unsigned number)
{
    DIR *dir = opendir("/sys/block");
    struct dirent *entry;
    char wanted[32];
    int fd = -1;

    snprintf(wanted, sizeof(wanted), "disk%u", number);
    while (fd < 0 && dir && (entry = readdir(dir))) {
        char path[320];

        if (has_serial(entry->d_name, wanted)) {
            snprintf(path, sizeof(path), "/dev/%s", entry->d_name);
            fd = open(path, O_RDWR | O_DIRECT);
        }
    }
    if (dir) {
        closedir(dir);
    }
    return fd;
}

static unsigned start_writers(void)
{
    unsigned disks = setting("disks", 2);
    unsigned scribblers = setting("scribblers", 0);
    int fds[MAX_DISKS];

    for (unsigned i = 0; i < disks && i < MAX_DISKS; i++) {
        for (int tries = 0; (fds[i] = open_disk(i)) < 0; tries++) {
            if (tries == 500) {
                give_up("no disk", i);
            }
            usleep(10000);
        }
    }
    say("READY %u\n", disks);
    for (unsigned i = 0; i < disks; i++) {
        if (fork() == 0) {
            disk_writer(i, fds[i]);
        }
        for (unsigned nth = 0; nth < LOAD_WRITERS; nth++) {
            if (fork() == 0) {
                load_writer(nth, fds[i]);
            }
        }
        for (unsigned nth = 0; nth < scribblers; nth++) {
            if (fork() == 0) {
                scribbler(nth, fds[i]);
            }
        }
    }
    return disks;
}

static void __attribute__((noreturn)) obey(void)
{
    char line[64];

    while (fgets(line, sizeof(line), stdin)) {
        uint64_t rate;

        if (sscanf(line, "load %" SCNu64, &rate) == 1) {
            *load_mb_per_s = rate;
        } else if (!strcmp(line, "poweroff\n")) {
            kill(-1, SIGKILL);      /* all but us and the first process */
            reboot(RB_POWER_OFF);
        } else if (!strcmp(line, "reboot\n")) {
            kill(-1, SIGKILL);      /* else it fails requests in flight */
            reboot(RB_AUTOBOOT);
        } else if (!strcmp(line, "panic\n")) {
            if (iopl(3)) {
                give_up("iopl", 3);
            }
            outb(PVPANIC_PANICKED, PVPANIC_PORT);
        } else {
            say("E not understood: %s", line);
        }
    }
    _exit(0);
}

int main(void)
{
    struct termios tty;
    int fd;

    mount("devtmpfs", "/dev", "devtmpfs", 0, NULL);
    mount("sysfs", "/sys", "sysfs", 0, NULL);
    fd = open("/dev/ttyS0", O_RDWR | O_NOCTTY);
    if (fd < 0) {
        return 1;
    }
    dup2(fd, STDIN_FILENO);
    dup2(fd, STDOUT_FILENO);
    dup2(fd, STDERR_FILENO);
    tcgetattr(fd, &tty);
    tty.c_lflag &= ~ECHO;
    tcsetattr(fd, TCSANOW, &tty);
    load_mb_per_s = mmap(NULL, PAGE, PROT_READ | PROT_WRITE,
                         MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (load_mb_per_s == MAP_FAILED) {
        give_up("mmap", PAGE);
    }
    crc_init();
    load_modules();
    start_writers();
    if (fork() == 0) {
        memory_writer();
    }
    if (fork() == 0) {
        obey();
    }
    for (;;) {
        wait(NULL);
        sleep(1);
    }
}
