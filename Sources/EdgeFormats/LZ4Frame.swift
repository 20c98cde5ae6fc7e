// LZ4 frames (lz4_Frame_format.md) with content checksum and, when known, content size; blocks of 256 KiB independent
// of each other, no block checksums. The bytes depend on the content alone. liblz4 is called from this file only.
import CLZ4

package enum LZ4FrameError: Error, Equatable, Sendable {
    /// The frame ends early; `bytes` were there.
    case truncated(bytes: Int)
    case notAFrame
    case contentChecksum
    case noContentChecksum
    /// The content is larger than the caller allows. `declaredBytes` is nil when the frame does not declare it.
    case tooLarge(declaredBytes: UInt64?, limitBytes: Int)
    case trailingBytes(count: Int)
    /// liblz4's name for the error.
    case corrupt(String)
    /// Compression: the pieces did not add up to the announced size.
    case wrongContentSize(announced: Int, given: Int)
}

extension LZ4FrameError: CustomStringConvertible {
    package var description: String {
        switch self {
        case .truncated(let bytes): "the LZ4 frame is cut off after \(bytes) bytes"
        case .notAFrame: "not an LZ4 frame"
        case .contentChecksum: "the content of the LZ4 frame does not match its checksum"
        case .noContentChecksum: "the LZ4 frame has no content checksum"
        case .tooLarge(.some(let declared), let limit):
            "the LZ4 frame declares \(declared) bytes of content, the limit is \(limit)"
        case .tooLarge(nil, let limit): "the LZ4 frame holds more than the limit of \(limit) bytes"
        case .trailingBytes(let count): "\(count) bytes follow the LZ4 frame"
        case .corrupt(let name): "the LZ4 frame is corrupt: \(name)"
        case .wrongContentSize(let announced, let given):
            "\(given) bytes were compressed where \(announced) were announced"
        }
    }
}

package enum LZ4Frame {
    /// Input is compressed, and output decoded, in pieces of this size.
    private static let pieceBytes = 256 << 10
    /// The densest a block can be, from the format of its length bytes (lz4_Block_format.md).
    private static let highestRatio = 255

    package static func compress(_ content: [UInt8]) throws -> [UInt8] {
        var frame: [UInt8] = []
        try compress(contentBytes: content.count, to: { frame.append(contentsOf: $0) }) { write in
            try content.withUnsafeBytes(write)
        }
        return frame
    }

    /// Compresses what `body` writes, at once and without holding it, and hands the frame to `sink`.
    ///
    /// - Parameter contentBytes: what `body` will write in all; it stands in the frame's header.
    package static func compress(
        contentBytes: Int, to sink: @escaping (UnsafeRawBufferPointer) throws -> Void,
        _ body: ((UnsafeRawBufferPointer) throws -> Void) throws -> Void
    ) throws {
        var context: OpaquePointer?
        try check(LZ4F_createCompressionContext(&context, UInt32(LZ4F_VERSION)))
        defer { LZ4F_freeCompressionContext(context) }

        var preferences = LZ4F_preferences_t()
        preferences.frameInfo.blockSizeID = LZ4F_max256KB
        preferences.frameInfo.blockMode = LZ4F_blockIndependent
        preferences.frameInfo.contentChecksumFlag = LZ4F_contentChecksumEnabled
        preferences.frameInfo.contentSize = UInt64(contentBytes)

        // The bound also covers the frame's header and end.
        let capacity = max(LZ4F_compressBound(pieceBytes, &preferences), Int(LZ4F_HEADER_SIZE_MAX))
        let output = UnsafeMutableRawBufferPointer.allocate(byteCount: capacity, alignment: 16)
        defer { output.deallocate() }
        func emit(_ result: Int) throws {
            try check(result)
            if result > 0 { try sink(UnsafeRawBufferPointer(rebasing: output[..<result])) }
        }

        try emit(LZ4F_compressBegin(context, output.baseAddress, capacity, &preferences))
        var given = 0
        try body { bytes in
            given += bytes.count
            guard given <= contentBytes else {
                throw LZ4FrameError.wrongContentSize(announced: contentBytes, given: given)
            }
            var rest = bytes
            while !rest.isEmpty {
                let piece = rest.prefix(pieceBytes)
                let start = UnsafeRawBufferPointer(rebasing: piece).baseAddress
                try emit(LZ4F_compressUpdate(context, output.baseAddress, capacity, start, piece.count, nil))
                rest = UnsafeRawBufferPointer(rebasing: rest.dropFirst(piece.count))
            }
        }
        guard given == contentBytes else {
            throw LZ4FrameError.wrongContentSize(announced: contentBytes, given: given)
        }
        try emit(LZ4F_compressEnd(context, output.baseAddress, capacity, nil))
    }

    /// The content of one frame that fills `frame` exactly. Memory follows what is decoded, not what is declared.
    ///
    /// - Parameter consumed: gets how much of the frame has been read and is not needed any more.
    package static func decompress(
        _ frame: UnsafeRawBufferPointer, limitBytes: Int, consumed: (Int) -> Void = { _ in }
    ) throws(LZ4FrameError) -> [UInt8] {
        var content: [UInt8] = []
        try decompress(frame, limitBytes: limitBytes) { piece, position, declared in
            consumed(position)
            if content.isEmpty, let declared {
                let (densest, overflow) = frame.count.multipliedReportingOverflow(by: highestRatio)
                content.reserveCapacity(overflow ? Int(declared) : min(Int(declared), densest))
            }
            content.append(contentsOf: piece)
        }
        return content
    }

    /// What the frame says that it holds; nil where it does not say.
    package static func declaredBytes(_ frame: UnsafeRawBufferPointer) throws(LZ4FrameError) -> UInt64? {
        var context: OpaquePointer?
        try check(LZ4F_createDecompressionContext(&context, UInt32(LZ4F_VERSION)))
        defer { LZ4F_freeDecompressionContext(context) }
        return try header(of: frame, context).declared
    }

    /// Where the frame's blocks begin, and the content's size if it is declared.
    private static func header(
        of frame: UnsafeRawBufferPointer, _ context: OpaquePointer?
    ) throws(LZ4FrameError) -> (byteCount: Int, declared: UInt64?) {
        guard let start = frame.baseAddress, !frame.isEmpty else { throw .truncated(bytes: 0) }
        var information = LZ4F_frameInfo_t()
        var byteCount = frame.count
        let hint = LZ4F_getFrameInfo(context, &information, start, &byteCount)
        if LZ4F_isError(hint) != 0, isHeaderCut(frame) { throw .truncated(bytes: frame.count) }
        try check(hint)
        guard information.frameType == LZ4F_frame else { throw .notAFrame }
        guard information.contentChecksumFlag == LZ4F_contentChecksumEnabled else { throw .noContentChecksum }
        return (byteCount, information.contentSize == 0 ? nil : information.contentSize)
    }

    /// The same, piece by piece and without holding it.
    ///
    /// - Parameter sink: gets a piece of the content, how much of the frame has been read, and the size that the frame declares.
    package static func decompress(
        _ frame: UnsafeRawBufferPointer, limitBytes: Int,
        to sink: (_ piece: UnsafeRawBufferPointer, _ consumed: Int, _ declared: UInt64?) -> Void
    ) throws(LZ4FrameError) {
        var context: OpaquePointer?
        try check(LZ4F_createDecompressionContext(&context, UInt32(LZ4F_VERSION)))
        defer { LZ4F_freeDecompressionContext(context) }

        let (headerBytes, declared) = try header(of: frame, context)
        var position = headerBytes
        if let declared, declared > UInt64(limitBytes) {
            throw .tooLarge(declaredBytes: declared, limitBytes: limitBytes)
        }

        var decoded = 0
        let piece = UnsafeMutableRawBufferPointer.allocate(byteCount: pieceBytes, alignment: 16)
        defer { piece.deallocate() }
        while true {
            var produced = pieceBytes
            var consumed = frame.count - position
            let hint = LZ4F_decompress(context, piece.baseAddress, &produced, frame.baseAddress! + position, &consumed, nil)
            try check(hint)
            decoded += produced
            guard decoded <= limitBytes else { throw .tooLarge(declaredBytes: declared, limitBytes: limitBytes) }
            position += consumed
            sink(UnsafeRawBufferPointer(rebasing: piece[..<produced]), position, declared)
            if hint == 0 { break }
            guard consumed > 0 || produced > 0 else { throw .truncated(bytes: frame.count) }
        }
        guard position == frame.count else { throw .trailingBytes(count: frame.count - position) }
    }

    /// Whether the frame is a proper start of a frame's header and no more.
    private static let magic: [UInt8] = [0x04, 0x22, 0x4D, 0x18]

    /// Whether bytes say that they are a frame.
    package static func hasMagic(_ bytes: UnsafeRawBufferPointer) -> Bool { bytes.starts(with: magic) }

    private static func isHeaderCut(_ frame: UnsafeRawBufferPointer) -> Bool {
        guard zip(frame, magic).allSatisfy({ $0 == $1 }) else { return false }
        guard frame.count >= Int(LZ4F_MIN_SIZE_TO_KNOW_HEADER_LENGTH) else { return true }
        let needed = LZ4F_headerSize(frame.baseAddress, frame.count)
        return LZ4F_isError(needed) == 0 && needed > frame.count
    }

    private static func check(_ result: Int) throws(LZ4FrameError) {
        guard LZ4F_isError(result) != 0 else { return }
        let name = String(cString: LZ4F_getErrorName(result))
        switch name {
        case "ERROR_contentChecksum_invalid": throw .contentChecksum
        case "ERROR_frameType_unknown": throw .notAFrame
        default: throw .corrupt(name)
        }
    }
}
