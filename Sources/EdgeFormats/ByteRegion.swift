// Read-only bytes that live as long as the object: a mapped file, or a copy owned in memory. Parsers keep offsets into
// a region and hold it, so nothing they hand out can outlive the bytes. Never written to after creation.
import Glibc

/// One failed call to the operating system.
package struct FileError: Error, Equatable, Sendable, CustomStringConvertible {
    /// The call, as in the manual: `open`, `fsync`, …
    package let operation: String
    package let path: String
    package let errno: Int32

    package init(operation: String, path: String, errno: Int32) {
        self.operation = operation
        self.path = path
        self.errno = errno
    }

    package var isNotFound: Bool { errno == ENOENT }

    package var description: String {
        "\(operation) \(path): \(String(cString: strerror(errno))) (errno \(errno))"
    }
}

package final class ByteRegion: Sendable {
    private enum Storage {
        /// With the descriptor for `read`.
        case mapped(Int32, path: String)
        case owned
    }

    /// Valid while the region lives, and a reference's last use may end that: hold the region elsewhere, or use
    /// `withBytes`. The memory is never written, so any thread may read it.
    package nonisolated(unsafe) let bytes: UnsafeRawBufferPointer
    private let storage: Storage

    private init(_ bytes: UnsafeRawBufferPointer, _ storage: Storage) {
        self.bytes = bytes
        self.storage = storage
    }

    deinit {
        switch storage {
        case .mapped(let descriptor, _):
            munmap(UnsafeMutableRawPointer(mutating: bytes.baseAddress!), bytes.count)
            close(descriptor)
        case .owned: bytes.deallocate()
        }
    }

    /// Maps a regular file, private and read-only. The file must not be truncated while the region lives.
    package static func map(path: String) throws(FileError) -> ByteRegion {
        let descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK)
        guard descriptor >= 0 else { throw FileError(operation: "open", path: path, errno: errno) }
        var isKept = false
        defer { if !isKept { close(descriptor) } }
        var status = stat()
        guard fstat(descriptor, &status) == 0 else { throw FileError(operation: "fstat", path: path, errno: errno) }
        guard status.st_mode & S_IFMT == S_IFREG else {
            let isDirectory = status.st_mode & S_IFMT == S_IFDIR
            throw FileError(operation: "open", path: path, errno: isDirectory ? EISDIR : EINVAL)
        }
        // mmap refuses a length of zero.
        guard status.st_size > 0 else { return copy(of: []) }
        let address = mmap(nil, status.st_size, PROT_READ, MAP_PRIVATE, descriptor, 0)
        guard let address, address != MAP_FAILED else { throw FileError(operation: "mmap", path: path, errno: errno) }
        isKept = true
        return ByteRegion(
            UnsafeRawBufferPointer(start: address, count: status.st_size), .mapped(descriptor, path: path))
    }

    package static func copy(of bytes: [UInt8]) -> ByteRegion {
        let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: bytes.count, alignment: 64)
        buffer.copyBytes(from: bytes)
        return ByteRegion(UnsafeRawBufferPointer(buffer), .owned)
    }

    /// The region lives until `body` returns.
    package func withBytes<R, E: Error>(_ body: (UnsafeRawBufferPointer) throws(E) -> R) throws(E) -> R {
        defer { withExtendedLifetime(self) {} }
        return try body(bytes)
    }

    package static let pageBytes = Int(getpagesize())

    /// Takes whole pages of `range` out of the resident set. They stay in the page cache while the kernel has room.
    package func release(_ range: Range<Int>) {
        guard case .mapped = storage else { return }
        let first = (range.lowerBound + Self.pageBytes - 1) / Self.pageBytes * Self.pageBytes
        let end = range.upperBound == bytes.count ? bytes.count : range.upperBound / Self.pageBytes * Self.pageBytes
        guard first < end else { return }
        // Advice about clean pages of a live mapping cannot fail.
        _ = madvise(UnsafeMutableRawPointer(mutating: bytes.baseAddress! + first), end - first, MADV_DONTNEED)
    }

    /// Takes the file out of the page cache, as far as nobody else maps it.
    package func dropCached() throws(FileError) {
        guard case .mapped(let descriptor, let path) = storage else { return }
        release(0..<bytes.count)
        let status = posix_fadvise(descriptor, 0, 0, POSIX_FADV_DONTNEED)
        guard status == 0 else { throw FileError(operation: "posix_fadvise", path: path, errno: status) }
    }

    /// Copies bytes without making a page resident.
    package func read(at offset: Int, count: Int, into target: UnsafeMutableRawPointer) throws(FileError) {
        precondition(offset >= 0 && count >= 0 && offset + count <= bytes.count)
        guard case .mapped(let descriptor, let path) = storage else {
            target.copyMemory(from: bytes.baseAddress! + offset, byteCount: count)
            return
        }
        var done = 0
        while done < count {
            let got = pread(descriptor, target + done, count - done, off_t(offset + done))
            if got < 0 && errno == EINTR { continue }
            guard got > 0 else { throw FileError(operation: "pread", path: path, errno: got == 0 ? EIO : errno) }
            done += got
        }
    }

    package subscript(_ range: Range<Int>) -> UnsafeRawBufferPointer {
        UnsafeRawBufferPointer(rebasing: bytes[range])
    }

    /// Unaligned, little-endian. Traps when the integer does not lie inside the region.
    func integer<T: FixedWidthInteger & BitwiseCopyable>(at offset: Int, as type: T.Type = T.self) -> T {
        T(littleEndian: bytes.loadUnaligned(fromByteOffset: offset, as: T.self))
    }
}

/// A tensor's values on their way into a file.
package enum TensorBody: Equatable, Sendable {
    case bytes([UInt8])
    case floats([Float])
    /// The same bytes over and over, cut at the end: a tensor of any size in the memory of one piece.
    case repeated([UInt8], byteCount: Int)

    package var byteCount: Int {
        switch self {
        case .bytes(let bytes): bytes.count
        case .floats(let floats): floats.count * MemoryLayout<Float>.size
        case .repeated(_, let byteCount): byteCount
        }
    }

    /// Hands the values to `sink`, little-endian, as every supported host is; not copied.
    package func write(to sink: (UnsafeRawBufferPointer) throws -> Void) rethrows {
        switch self {
        case .bytes(let bytes): try bytes.withUnsafeBytes(sink)
        case .floats(let floats): try floats.withUnsafeBytes(sink)
        case .repeated(let piece, let byteCount):
            for done in stride(from: 0, to: byteCount, by: piece.count) {
                try piece.withUnsafeBytes {
                    try sink(UnsafeRawBufferPointer(rebasing: $0.prefix(byteCount - done)))
                }
            }
        }
    }
}
