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
    private enum Storage { case mapped, owned }

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
        case .mapped: munmap(UnsafeMutableRawPointer(mutating: bytes.baseAddress!), bytes.count)
        case .owned: bytes.deallocate()
        }
    }

    /// Maps a regular file, private and read-only. The file must not be truncated while the region lives.
    package static func map(path: String) throws(FileError) -> ByteRegion {
        let descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK)
        guard descriptor >= 0 else { throw FileError(operation: "open", path: path, errno: errno) }
        defer { close(descriptor) }
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
        return ByteRegion(UnsafeRawBufferPointer(start: address, count: status.st_size), .mapped)
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

    package var byteCount: Int {
        switch self {
        case .bytes(let bytes): bytes.count
        case .floats(let floats): floats.count * MemoryLayout<Float>.size
        }
    }

    /// Little-endian, as every supported host is; not copied.
    package func withUnsafeBytes<R>(_ body: (UnsafeRawBufferPointer) throws -> R) rethrows -> R {
        switch self {
        case .bytes(let bytes): try bytes.withUnsafeBytes(body)
        case .floats(let floats): try floats.withUnsafeBytes(body)
        }
    }
}
