// The files that a model is imported from: by name, each checked to be a regular file. A name is a key and never a path.
import EdgeFormats
import Glibc

struct SourceFiles {
    private struct File {
        let path: String
        let byteCount: Int
        /// What changes when somebody puts other bytes there: inode, modification time.
        let stamp: [UInt64]
    }

    static let fileLimit = 4096
    static let nameLimitBytes = 255
    /// config.json, an index, tokenizer_config.json: parsed as a whole.
    static let jsonLimitBytes = 16 << 20
    private static let lfsPointerLimitBytes = 1024
    private static let lfsPointerStart = "version https://git-lfs.github.com/"

    private let files: [String: File]
    /// Sorted.
    let names: [String]

    init(_ paths: [String: String]) throws {
        guard paths.count <= Self.fileLimit else { throw ImportError.tooManyFiles(paths.count, limit: Self.fileLimit) }
        names = paths.keys.sorted()
        var files: [String: File] = [:]
        for name in names {
            guard Self.isName(name) else { throw ImportError.badFileName(name) }
            let path = paths[name]!
            var status = stat()
            guard lstat(path, &status) == 0 else { throw FileError(operation: "lstat", path: path, errno: errno) }
            guard status.st_mode & S_IFMT == S_IFREG else { throw ImportError.notARegularFile(name) }
            files[name] = File(
                path: path, byteCount: Int(status.st_size),
                stamp: [
                    UInt64(status.st_ino), UInt64(bitPattern: Int64(status.st_mtim.tv_sec)),
                    UInt64(bitPattern: Int64(status.st_mtim.tv_nsec)),
                ])
        }
        self.files = files
    }

    static func isName(_ name: String) -> Bool {
        (1...nameLimitBytes).contains(name.utf8.count) && name != "." && name != ".."
            && name.utf8.allSatisfy { $0 != UInt8(ascii: "/") && $0 >= 0x20 && $0 != 0x7F }
    }

    func contains(_ name: String) -> Bool { files[name] != nil }

    /// 0 when there is no such file.
    func byteCount(_ name: String) -> Int { files[name]?.byteCount ?? 0 }

    func map(_ name: String, neededBecause reason: String) throws -> ByteRegion {
        guard let file = files[name] else { throw ImportError.missingFile(name, neededBecause: reason) }
        let region = try ByteRegion.map(path: file.path)
        let isPointer = region.bytes.count <= Self.lfsPointerLimitBytes
            && region.withBytes { $0.starts(with: Self.lfsPointerStart.utf8) }
        guard !isPointer else { throw ImportError.lfsPointer(file: name, bytes: region.bytes.count) }
        return region
    }

    func json(_ name: String, neededBecause reason: String) throws -> JSONText {
        let region = try map(name, neededBecause: reason)
        guard region.bytes.count <= Self.jsonLimitBytes else {
            throw ImportError.fileTooLarge(name, bytes: region.bytes.count, limitBytes: Self.jsonLimitBytes)
        }
        do {
            return try region.withBytes { bytes throws(JSONTextError) in try JSONText(parsing: bytes) }
        } catch {
            throw ImportError.badJSON(file: name, error)
        }
    }

    /// Equal for equal names of unchanged files.
    func identify(into digest: inout SHA256) {
        for name in names {
            digest.update(Array(name.utf8) + [0])
            let file = files[name]!
            for number in [UInt64(file.byteCount)] + file.stamp {
                withUnsafeBytes(of: number.littleEndian) { digest.update($0) }
            }
        }
    }
}
