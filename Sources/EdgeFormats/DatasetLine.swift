// One line of a JSONL dataset to a sample, and a file to its samples, one line at a time. The keys decide the shape; the
// first shape whose keys are all there wins, in the order messages, prompt + completion, instruction + output, text.
// Other keys are ignored, except those that would change what is trained. The first bad line ends the reading.

#if canImport(Glibc)
    import Glibc
#elseif canImport(Musl)
    import Musl
#endif

package enum DatasetSample: Sendable, Equatable {
    /// `tools` are the functions that the assistant may call, as JSON schemas; nil where there are none.
    case messages([Message], tools: JinjaValue? = nil)
    case promptCompletion(prompt: String, completion: String)
    /// `input` is nil where it is absent, null or empty.
    case instruction(instruction: String, input: String?, output: String)
    case text(String)
}

package struct DatasetError: Error, Equatable {
    /// Counts from 1, blank lines included; nil when no line is to blame.
    package let line: Int?
    package let reason: Reason

    package init(line: Int?, reason: Reason) {
        self.line = line
        self.reason = reason
    }

    package enum Reason: Error, Equatable {
        /// `errorNumber` is the system's.
        case cannotRead(path: String, errorNumber: Int32)
        case lineTooLong(limitBytes: Int)
        case notJSON(JSONSyntaxError)
        case notAnObject(found: String)
        case unknownShape(foundKeys: [String])
        /// `key` is a path: `messages[1].content`.
        case wrongType(key: String, expected: String, found: String)
        case missingKey(String)
        case empty(key: String)
        case unsupportedKey(String)
        /// Of a job whose samples belong to tasks.
        case noTask(known: [String])
        case unknownTask(String, known: [String])
        /// No line has it.
        case unusedTask(String)
    }
}

extension DatasetError: CustomStringConvertible {
    package var description: String { (line.map { "line \($0): " } ?? "") + reason.description }
}

extension DatasetError.Reason: CustomStringConvertible {
    package var description: String {
        switch self {
        case .cannotRead(let path, let errorNumber): "cannot read \(path): \(String(cString: strerror(errorNumber)))"
        case .lineTooLong(let limitBytes): "longer than \(limitBytes) bytes"
        case .notJSON(let error): error.description
        case .notAnObject(let found): "needs a JSON object; found: \(found)"
        case .unknownShape(let foundKeys):
            "needs one of messages | prompt+completion | instruction+output | text; found keys: "
                + (foundKeys.isEmpty ? "none" : foundKeys.joined(separator: ", "))
        case .wrongType(let key, let expected, let found): "\(key) needs to be \(expected); found: \(found)"
        case .missingKey(let key): "\(key) is missing"
        case .empty(let key): "\(key) is empty"
        case .unsupportedKey(let key): "\(key) is not supported"
        case .noTask(let known): "needs a \"task\", one of the job's: \(known.joined(separator: ", "))"
        case .unknownTask(let task, let known): "the job has no task \"\(task)\"; it has \(known.joined(separator: ", "))"
        case .unusedTask(let task): "no line has the task \"\(task)\", of the job's tasks"
        }
    }
}

package enum DatasetLine {
    /// Longest line that is read.
    package static let maximumBytes = 16 << 20

    package static func sample(_ utf8: [UInt8]) throws(DatasetError.Reason) -> DatasetSample { try sampleAndTask(utf8).sample }

    /// - Returns: the task is nil where the line has no `task`, or one that is no string: most jobs do not ask for it.
    package static func sampleAndTask(_ utf8: [UInt8]) throws(DatasetError.Reason) -> (sample: DatasetSample, task: String?) {
        guard utf8.count <= maximumBytes else { throw .lineTooLong(limitBytes: maximumBytes) }
        let value: JinjaValue
        do { value = try JinjaValue(json: utf8) } catch { throw .notJSON(error) }
        guard case .object(let object) = value else { throw .notAnObject(found: value.typeName) }
        let sample = try sample(of: object)
        guard case .string(let task)? = object.value("task") else { return (sample, nil) }
        return (sample, task)
    }

    private static func sample(of object: JinjaObject) throws(DatasetError.Reason) -> DatasetSample {
        if let messages = object.value("messages") {
            return .messages(try self.messages(messages), tools: try tools(object.value("tools")))
        }
        if let tools = object.value("tools"), tools.isTruthy { throw .unsupportedKey("tools") }
        if object.value("prompt") != nil, object.value("completion") != nil {
            return .promptCompletion(
                prompt: try text("prompt", in: object), completion: try nonEmptyText("completion", in: object))
        }
        if object.value("instruction") != nil, object.value("output") != nil {
            return .instruction(
                instruction: try nonEmptyText("instruction", in: object), input: try optionalText("input", in: object),
                output: try nonEmptyText("output", in: object))
        }
        guard object.value("text") != nil else { throw .unknownShape(foundKeys: object.keys) }
        return .text(try nonEmptyText("text", in: object))
    }

    private static func messages(_ value: JinjaValue) throws(DatasetError.Reason) -> [Message] {
        guard case .list(let list) = value else {
            throw .wrongType(key: "messages", expected: "a list", found: value.typeName)
        }
        guard !list.items.isEmpty else { throw .empty(key: "messages") }
        var messages: [Message] = []
        for (index, item) in list.items.enumerated() {
            let path = "messages[\(index)]"
            guard case .object(let object) = item else {
                throw .wrongType(key: path, expected: "an object", found: item.typeName)
            }
            var extra = JinjaObject()
            for (key, value) in zip(object.keys, object.values) where key != "role" && key != "content" {
                // The entries came out of a value that is one level deeper.
                do { try extra.set(key, value) } catch { throw .notJSON(.tooDeep(limit: JinjaValue.maximumDepth)) }
            }
            let role = try text("role", in: object, path: path + ".")
            guard !role.isEmpty else { throw .empty(key: path + ".role") }
            messages.append(Message(role: role, content: try content(of: object, path: path + "."), extra: extra))
        }
        return messages
    }

    /// A string, a list of parts, or nothing beside tool calls.
    private static func content(of object: JinjaObject, path: String) throws(DatasetError.Reason) -> JinjaValue {
        let hasCalls = object.value("tool_calls")?.isTruthy ?? false
        switch object.value("content") {
        case nil where hasCalls: return .undefined
        case .some(.none) where hasCalls: return .none
        case .list(let list):
            for (index, part) in list.items.enumerated() {
                if case .object = part { continue }
                throw .wrongType(
                    key: path + "content[\(index)]", expected: "an object", found: part.typeName)
            }
            return .list(list)
        default: return .string(try text("content", in: object, path: path))
        }
    }

    private static func tools(_ value: JinjaValue?) throws(DatasetError.Reason) -> JinjaValue? {
        guard let value, value.isTruthy else { return nil }
        guard case .list(let list) = value else {
            throw .wrongType(key: "tools", expected: "a list", found: value.typeName)
        }
        for (index, tool) in list.items.enumerated() {
            if case .object = tool { continue }
            throw .wrongType(key: "tools[\(index)]", expected: "an object", found: tool.typeName)
        }
        return value
    }

    private static func text(
        _ key: String, in object: JinjaObject, path: String = ""
    ) throws(DatasetError.Reason) -> String {
        guard let value = object.value(key) else { throw .missingKey(path + key) }
        guard case .string(let text) = value else {
            throw .wrongType(key: path + key, expected: "a string", found: value.typeName)
        }
        return text
    }

    private static func nonEmptyText(_ key: String, in object: JinjaObject) throws(DatasetError.Reason) -> String {
        let text = try text(key, in: object)
        guard !text.isEmpty else { throw .empty(key: key) }
        return text
    }

    private static func optionalText(_ key: String, in object: JinjaObject) throws(DatasetError.Reason) -> String? {
        switch object.value(key) {
        case nil, .some(.none): return nil
        default:
            let text = try text(key, in: object)
            return text.isEmpty ? nil : text
        }
    }
}

/// Reads a JSONL file: UTF-8 with or without byte-order mark, lines ending in LF or CRLF, blank lines skipped. Holds one
/// line and one chunk in memory.
package struct DatasetReader: ~Copyable {
    private let path: String
    private let descriptor: CInt
    private var chunk: [UInt8] = []
    private var chunkOffset = 0
    private var isAtEnd = false
    /// Of the line that was read last, from 1, blank lines included.
    package private(set) var lineNumber = 0
    /// Of the sample that was read last.
    package private(set) var task: String?
    private static let chunkBytes = 256 << 10

    package static func open(path: String) throws(DatasetError) -> DatasetReader {
        var descriptor: CInt
        repeat { descriptor = Self.openForReading(path) } while descriptor < 0 && errno == EINTR
        guard descriptor >= 0 else {
            throw DatasetError(line: nil, reason: .cannotRead(path: path, errorNumber: errno))
        }
        return DatasetReader(path: path, descriptor: descriptor)
    }

    private static func openForReading(_ path: String) -> CInt {
        #if canImport(Glibc)
            Glibc.open(path, O_RDONLY | O_CLOEXEC)
        #elseif canImport(Musl)
            Musl.open(path, O_RDONLY | O_CLOEXEC)
        #endif
    }

    private init(path: String, descriptor: CInt) {
        self.path = path
        self.descriptor = descriptor
    }

    deinit { close(descriptor) }

    /// The next sample; nil at the end of the file. After an error the reader is spent.
    package mutating func next() throws(DatasetError) -> DatasetSample? {
        while let line = try nextLine() {
            if line.allSatisfy({ $0 == 0x20 || $0 == 0x09 }) { continue }
            do {
                let read = try DatasetLine.sampleAndTask(line)
                task = read.task
                return read.sample
            } catch { throw DatasetError(line: lineNumber, reason: error) }
        }
        return nil
    }

    /// The next line without its end; nil at the end of the file.
    private mutating func nextLine() throws(DatasetError) -> [UInt8]? {
        var line: [UInt8] = []
        var hasLine = false
        while true {
            if chunkOffset == chunk.count { try readChunk() }
            guard chunkOffset < chunk.count else { break }
            if !hasLine {
                hasLine = true
                lineNumber += 1
            }
            let rest = chunk[chunkOffset...]
            let end = rest.firstIndex(of: UInt8(ascii: "\n"))
            line += rest[..<(end ?? rest.endIndex)]
            chunkOffset = end.map { $0 + 1 } ?? rest.endIndex
            // One byte more, for the CR that is not part of the line.
            guard line.count <= DatasetLine.maximumBytes + 1 else {
                throw DatasetError(line: lineNumber, reason: .lineTooLong(limitBytes: DatasetLine.maximumBytes))
            }
            if end != nil { break }
        }
        guard hasLine else { return nil }
        if line.last == UInt8(ascii: "\r") { line.removeLast() }
        if lineNumber == 1, line.starts(with: [0xEF, 0xBB, 0xBF]) { line.removeFirst(3) }
        return line
    }

    private mutating func readChunk() throws(DatasetError) {
        guard !isAtEnd else { return }
        let descriptor = descriptor
        var errorNumber: CInt = 0
        chunk = Array(unsafeUninitializedCapacity: Self.chunkBytes) { buffer, count in
            var received: Int
            repeat {
                received = read(descriptor, buffer.baseAddress, buffer.count)
                errorNumber = received < 0 ? errno : 0
            } while errorNumber == EINTR
            count = max(0, received)
        }
        chunkOffset = 0
        isAtEnd = chunk.isEmpty
        guard errorNumber == 0 else {
            throw DatasetError(line: nil, reason: .cannotRead(path: path, errorNumber: errorNumber))
        }
    }
}
