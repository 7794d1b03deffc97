/*
 * Shows traces as python -m sriovd.trace does: lines on standard output, what is missing on standard error.
 * Built on sriovd-trace.h alone, to show that the header is enough to read the format from C.
 */
#define _POSIX_C_SOURCE 200809L
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "sriovd-trace.h"

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "this example does not swap bytes"
#endif

#define TRIES 3
#define PRODUCER_MAX (UINT64_C(1) << 63)

typedef struct sriovd_trace_header Header;
typedef struct sriovd_trace_record Record;

/* What is taken once; the owner of the buffer may change the header at any time. */
typedef struct {
	Header *header;
	Record *slots;
	uint32_t capacity;
	int drops;
	uint64_t position, gone, shown, damaged;
} Reader;

#define NAME(number, constant, word) case constant: return word;

static const char *name_type(unsigned number)
{
	switch (number) { SRIOVD_TRACE_TYPE_LIST(NAME) }
	return NULL;
}

static const char *name_direction(unsigned number)
{
	switch (number) { SRIOVD_TRACE_DIRECTION_LIST(NAME) }
	return NULL;
}

static const char *name_status(unsigned number)
{
	switch (number) { SRIOVD_TRACE_STATUS_LIST(NAME) }
	return NULL;
}

#define ERROR(number, word) case number: return word;

static const char *name_error(int32_t number)
{
	switch (number) { SRIOVD_TRACE_ERROR_LIST(ERROR) }
	return NULL;
}

static size_t find_length(const char *text, size_t length)
{
	while (length && !text[length - 1])
		length--;
	return length;
}

static void print_escaped(const char *text, size_t length)
{
	for (size_t i = 0; i < length; i++) {
		unsigned char byte = (unsigned char)text[i];

		if (byte >= 0x20 && byte <= 0x7e && byte != '\\')
			putchar(byte);
		else
			printf("\\x%02x", byte);
	}
}

static void print_place(const Record *record)
{
	printf("[%5" PRIu64 ".%06" PRIu64 "]", record->time_nsec / 1000000000, record->time_nsec / 1000 % 1000000);
	if (record->lost)
		printf(" (%" PRIu32 " lost)", record->lost);
	printf(" #%" PRIu64, record->transaction);
	if (record->parent)
		printf(" <%" PRIu64, record->parent);
	printf(" %04x:%02x:%02x.%x", record->vf >> 16, record->vf >> 8 & 0xff, record->vf >> 3 & 0x1f,
	       record->vf & 7);
}

static void print_outcome(const Record *record)
{
	const char *error = name_error(record->error);

	printf(" %s", name_status(record->status));
	if (error)
		printf(" %s", error);
	else if (record->error)
		printf(" errno %" PRId32, record->error);
	if (record->latency_nsec)
		printf(" %" PRIu64 " us", record->latency_nsec / 1000);
}

static void print_record(const Record *record)
{
	size_t operation = find_length(record->operation, sizeof(record->operation));
	size_t there = record->size < sizeof(record->arguments) ? record->size : sizeof(record->arguments);
	size_t arguments = find_length(record->arguments, there);

	print_place(record);
	printf(" %s", name_type(record->type));
	if (record->direction)
		printf(" %s", name_direction(record->direction));
	putchar(' ');
	print_escaped(operation ? record->operation : "-", operation ? operation : 1);
	print_outcome(record);
	if (arguments) {
		putchar(' ');
		print_escaped(record->arguments, arguments);
	}
	if (record->size > sizeof(record->arguments))
		printf(" (+%zu bytes)", record->size - arguments);
	putchar('\n');
}

static uint64_t find_oldest(const Reader *reader, uint64_t producer)
{
	uint64_t window = reader->drops ? reader->capacity : reader->capacity - 1;

	return producer > window ? producer - window : 0;
}

static int load_producer(const Reader *reader, uint64_t *producer)
{
	*producer = atomic_load_explicit(&reader->header->producer, memory_order_acquire);
	return *producer < PRODUCER_MAX && *producer >= reader->position;
}

/* Whether record n is there and means something. */
static int copy_record(const Reader *reader, uint64_t n, Record *copy)
{
	Record *slot = &reader->slots[n % reader->capacity];

	for (int i = 0; i < TRIES; i++) {
		uint64_t before = atomic_load_explicit(&slot->sequence, memory_order_acquire);

		memcpy((char *)copy + sizeof(copy->sequence), (char *)slot + sizeof(slot->sequence),
		       sizeof(*copy) - sizeof(copy->sequence));
		atomic_thread_fence(memory_order_acquire);
		if (before == n + 1 && atomic_load_explicit(&slot->sequence, memory_order_relaxed) == n + 1)
			return name_type(copy->type) && name_direction(copy->direction) && name_status(copy->status);
	}
	return 0;
}

static void skip_to(Reader *reader, uint64_t oldest)
{
	if (oldest > reader->position) {
		reader->gone += oldest - reader->position;
		reader->position = oldest;
	}
}

static int show(Reader *reader)
{
	uint64_t producer, now, oldest;
	Record copy;

	if (!load_producer(reader, &producer))
		return 0;
	skip_to(reader, find_oldest(reader, producer));
	while (reader->position < producer) {
		if (copy_record(reader, reader->position, &copy)) {
			print_record(&copy);
			reader->shown++;
			reader->position++;
			continue;
		}
		if (!load_producer(reader, &now))
			return 0;
		oldest = find_oldest(reader, now);
		if (oldest > reader->position) {
			skip_to(reader, oldest);
		} else {
			reader->damaged++;
			reader->position++;
		}
	}
	return 1;
}

static int begin(Reader *reader, void *memory, size_t size)
{
	Header *header = memory;
	uint64_t producer, consumer;

	*reader = (Reader){ .header = header };
	if (size < SRIOVD_TRACE_HEADER_BYTES || memcmp(header->magic, SRIOVD_TRACE_MAGIC, sizeof(header->magic)) ||
	    header->major != SRIOVD_TRACE_MAJOR || header->header_bytes != SRIOVD_TRACE_HEADER_BYTES ||
	    header->record_bytes != SRIOVD_TRACE_RECORD_BYTES)
		return 0;
	reader->capacity = header->capacity;
	reader->drops = atomic_load(&header->flags) & SRIOVD_TRACE_FLAG_DROP;
	reader->slots = (Record *)((char *)memory + SRIOVD_TRACE_HEADER_BYTES);
	if (reader->capacity < SRIOVD_TRACE_CAPACITY_MIN ||
	    reader->capacity > (size - SRIOVD_TRACE_HEADER_BYTES) / SRIOVD_TRACE_RECORD_BYTES)
		return 0;
	if (reader->drops) {
		if (!load_producer(reader, &producer))
			return 0;
		consumer = atomic_load_explicit(&header->consumer, memory_order_relaxed);
		reader->position = find_oldest(reader, producer);
		if (consumer >= reader->position && consumer <= producer)
			reader->position = consumer;
	}
	return 1;
}

static int show_file(const char *path)
{
	Reader reader;
	struct stat status;
	void *memory = MAP_FAILED;
	int good, descriptor = open(path, O_RDONLY | O_CLOEXEC);

	if (descriptor >= 0 && !fstat(descriptor, &status) && status.st_size > 0)
		memory = mmap(NULL, (size_t)status.st_size, PROT_READ, MAP_SHARED, descriptor, 0);
	good = memory != MAP_FAILED && begin(&reader, memory, (size_t)status.st_size) && show(&reader);
	if (good) {
		uint64_t lost = reader.gone + (reader.drops ? atomic_load(&reader.header->lost) : 0);

		if (lost || reader.damaged)
			fprintf(stderr, "%s: %" PRIu64 " records, %" PRIu64 " lost, %" PRIu64 " damaged\n", path,
				reader.shown, lost, reader.damaged);
	} else {
		fprintf(stderr, "%s: cannot be read\n", path);
	}
	if (memory != MAP_FAILED)
		munmap(memory, (size_t)status.st_size);
	if (descriptor >= 0)
		close(descriptor);
	return good;
}

int main(int count, char **paths)
{
	int good = 1;

	for (int i = 1; i < count; i++)
		good &= show_file(paths[i]);
	return good && !fflush(stdout) ? 0 : 1;
}
