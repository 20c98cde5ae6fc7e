// A published artifact against its checksums, in the memory of one piece. SHA256SUMS is in the form of `sha256sum`, so
// `sha256sum -c SHA256SUMS` says the same.
import EdgeFormats

extension AdapterArtifact {
    static let checksumsName = "SHA256SUMS"
    static let recordName = "training.json"
    static let cardName = "README.md"
    private static let publishedNames = [configName, framedName, recordName, cardName]
    private static let checksumsLimitBytes = 64 << 10

    package enum Verification: Equatable, Sendable {
        case asPublished
        /// Published before there were checksums: the tensors have the frame's own, the rest has none.
        case withoutChecksums
    }

    /// Sorted by name, so that the same files give the same bytes.
    static func checksums(_ digests: [String: [UInt8]]) -> [UInt8] {
        digests.sorted { $0.key < $1.key }.flatMap { Array("\(SHA256.hex($0.value))  \($0.key)\n".utf8) }
    }

    /// Every file has its checksum, the frame decodes, its header describes all of its content, and the configuration reads.
    ///
    /// - Throws: `AdapterError`, `FileError`, `JSONTextError`, `LZ4FrameError`, `SafetensorsError`.
    package static func verify(directory: String) throws -> Verification {
        let sums = try mapIfThere(directory + "/" + checksumsName)
        if let sums {
            var listed: Set<String> = []
            for (name, digest) in try entries(of: sums) {
                listed.insert(name)
                guard SHA256.hex(digestByPieces(try file(name, in: directory))) == digest else {
                    throw AdapterError.badChecksum(file: name)
                }
            }
            // A list that was cut short vouches for nothing behind the cut.
            guard listed.isSuperset(of: publishedNames) else { throw AdapterError.badChecksum(file: checksumsName) }
        }
        _ = try AdapterConfig(json: try file(configName, in: directory))
        try verifyTensors(try file(framedName, in: directory))
        return sums == nil ? .withoutChecksums : .asPublished
    }

    private static func file(_ name: String, in directory: String) throws -> ByteRegion {
        guard let region = try mapIfThere(directory + "/" + name) else { throw AdapterError.missingFile(name) }
        return region
    }

    /// SHA-256 of a published artifact's tensors, in their frame.
    package static func tensorDigest(_ directory: String) throws -> [UInt8] { digestByPieces(try file(framedName, in: directory)) }

    /// SHA-256, with a megabyte of the file resident at a time.
    static func digestByPieces(_ region: ByteRegion) -> [UInt8] {
        var digest = SHA256()
        for start in stride(from: 0, to: region.bytes.count, by: 1 << 20) {
            let end = min(start + 1 << 20, region.bytes.count)
            digest.update(region[start..<end])
            region.release(0..<end)
        }
        return digest.finalize()
    }

    private static func entries(of sums: ByteRegion) throws(AdapterError) -> [(name: String, digest: String)] {
        let text = sums.bytes.count <= checksumsLimitBytes ? sums.withBytes { String(validating: $0, as: UTF8.self) } : nil
        guard let text, text.hasSuffix("\n") else { throw .badChecksum(file: checksumsName) }
        var entries: [(String, String)] = []
        for line in text.split(separator: "\n") {
            let name = line.dropFirst(2 * SHA256.byteCount + 2)
            // Names of this directory, and of no other.
            guard line.dropFirst(2 * SHA256.byteCount).hasPrefix("  "), !name.isEmpty, !name.contains("/") else {
                throw .badChecksum(file: checksumsName)
            }
            entries.append((String(name), String(line.prefix(2 * SHA256.byteCount))))
        }
        return entries
    }

    private static func verifyTensors(_ framed: ByteRegion) throws {
        var start = ContentStart()
        try framed.withBytes { frame in
            try LZ4Frame.decompress(frame, limitBytes: tensorFileLimitBytes) { piece, consumed, _ in
                start.take(piece)
                framed.release(0..<consumed)
            }
        }
        let tensors = try tensorBytes(start.header)
        guard start.contentBytes == headerBytes(start.header) + tensors else {
            throw AdapterError.badChecksum(file: framedName)
        }
    }

    /// The header of a safetensors file that comes in pieces, and how long the file is.
    private struct ContentStart {
        var header: [UInt8] = []
        var contentBytes = 0

        mutating func take(_ piece: UnsafeRawBufferPointer) {
            contentBytes += piece.count
            var rest = piece[...]
            while !rest.isEmpty, header.count < AdapterArtifact.headerBytes(header) {
                let taken = rest.prefix(AdapterArtifact.headerBytes(header) - header.count)
                header += taken
                rest = rest.dropFirst(taken.count)
            }
        }
    }

    /// Of a safetensors file that begins so: the length field and what it says; all that is allowed when that is not there yet.
    private static func headerBytes(_ start: [UInt8]) -> Int {
        guard start.count >= 8 else { return 8 }
        let length = start[..<8].reversed().reduce(UInt64(0)) { $0 << 8 | UInt64($1) }
        return 8 + Int(min(length, UInt64(SafetensorsFile.headerLimitBytes)))
    }

    /// Where the last tensor ends.
    private static func tensorBytes(_ header: [UInt8]) throws -> Int {
        let document = try header.dropFirst(8).withUnsafeBytes { try JSONText(parsing: $0) }
        guard case .object(let members) = document else { throw AdapterError.noTensors }
        let ends = members.compactMap { $0.key == "__metadata__" ? nil : $0.value["data_offsets"]?.array?.last?.integer }
        guard let last = ends.max(), last >= 0, last <= tensorFileLimitBytes else { throw AdapterError.noTensors }
        return last
    }
}
