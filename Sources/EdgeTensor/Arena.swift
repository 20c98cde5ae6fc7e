// One mapped region that holds all training memory of a job. It is sized before anything is allocated, and a request
// beyond that size is a broken plan, which traps: the step itself never allocates.
import Glibc

/// Sizes in bytes. A type, so that elements and bytes cannot be mixed up.
package struct ByteCount: Hashable, Comparable, Codable, Sendable {
    package var bytes: Int
    package init(_ bytes: Int) { self.bytes = bytes }
    package static let zero = ByteCount(0)
    package static func + (a: Self, b: Self) -> Self { .init(a.bytes + b.bytes) }
    package static func += (a: inout Self, b: Self) { a = a + b }
    package static func < (a: Self, b: Self) -> Bool { a.bytes < b.bytes }
    /// Of `count` f32 values as the arena rounds them: whole cache lines.
    package static func floats(_ count: Int) -> Self { .wholeLines(count * 4) }
    /// `bytes` rounded up to whole cache lines.
    package static func wholeLines(_ bytes: Int) -> Self {
        .init((bytes + Arena.alignment - 1) / Arena.alignment * Arena.alignment)
    }
}

package struct ArenaError: Error, Equatable, CustomStringConvertible {
    package let requested: ByteCount
    package let errno: Int32
    package var description: String {
        "cannot map \(requested.bytes) bytes of memory: \(String(cString: strerror(errno)))"
    }
}

/// A bump allocator over one anonymous mapping. Not thread-safe: everything is allocated before threads run.
package final class Arena {
    /// A cache line, and a 512-bit vector.
    package static let alignment = 64

    package let capacity: ByteCount
    package private(set) var used = ByteCount.zero
    private let base: UnsafeMutableRawPointer

    /// Maps `capacity` bytes of zeros. Pages become resident when first written.
    package init(capacity: ByteCount) throws {
        self.capacity = capacity
        let mapped = mmap(
            nil, max(capacity.bytes, 1), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
        guard let mapped, mapped != MAP_FAILED else { throw ArenaError(requested: capacity, errno: errno) }
        base = mapped
    }

    deinit { munmap(base, max(capacity.bytes, 1)) }

    /// `count` f32 zeros, 64-byte aligned, valid as long as the arena.
    package func floats(_ count: Int) -> UnsafeMutablePointer<Float> {
        allocate(.floats(count)).bindMemory(to: Float.self, capacity: count)
    }

    /// `[rows, columns]`, f32, zeros.
    package func tensor(_ rows: Int, _ columns: Int) -> Tensor {
        Tensor(floats(rows * columns), rows: rows, columns: columns)
    }

    /// `count` i32 zeros.
    package func integers(_ count: Int) -> UnsafeMutablePointer<Int32> {
        allocate(.floats(count)).bindMemory(to: Int32.self, capacity: count)
    }

    /// Two layouts of the same bytes, for memory that is used in one way or in the other and never both at a time.
    package func either<A, B>(_ first: () -> A, or second: () -> B) -> (A, B) {
        let start = used
        let a = first()
        let end = used
        used = start
        let b = second()
        used = max(used, end)
        return (a, b)
    }

    /// Gives back the pages behind `pointer`, whose values are lost.
    package func discard(after pointer: UnsafeMutableRawPointer) {
        let page = Int(getpagesize())
        let first = (pointer - base + page - 1) / page * page
        guard first < capacity.bytes else { return }
        // Advice about our own mapping cannot fail.
        _ = madvise(base + first, capacity.bytes - first, MADV_DONTNEED)
    }

    /// `size` zero bytes, whole cache lines.
    package func bytes(_ size: ByteCount) -> UnsafeMutableRawBufferPointer {
        precondition(size.bytes % Self.alignment == 0, "\(size.bytes) bytes are no whole cache lines")
        return UnsafeMutableRawBufferPointer(start: allocate(size), count: size.bytes)
    }

    private func allocate(_ size: ByteCount) -> UnsafeMutableRawPointer {
        precondition(used + size <= capacity, "the plan holds \(capacity.bytes) bytes; \((used + size).bytes) are asked for")
        defer { used += size }
        return base + used.bytes
    }
}
