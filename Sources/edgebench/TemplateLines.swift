// Chat templates over JSON lines, for comparison with transformers: each line on standard input is answered by one.
//
//     {"template": SOURCE}                          compiles it, for the lines after it
//     {"variables": {…}, "now": [Y, M, D, h, m, s]}  renders it with these variables and no others
//     {"conversation": {"messages": […]}, "special": ["</s>", …], "bos": …, "eos": …}
//                                                   its segments: text, and whether the assistant wrote it
//
// The tokenizer of a conversation has the 256 bytes and the special tokens named.
import EdgeFormats
import Foundation

struct TemplateLines {
    private var template: Result<ChatTemplate, ChatTemplateError> = .failure(.missing)

    struct Answer: Encodable {
        struct Segment: Encodable {
            var text: String
            var carriesLoss: Bool
        }
        var output: String?
        var segments: [Segment]?
        var error: String?
        var kind: String?
    }

    struct MalformedLine: Error {}

    mutating func answer(_ line: [UInt8]) throws -> Answer {
        guard case .object(let request) = try JinjaValue(json: line) else { throw MalformedLine() }
        do {
            if let source = request.value("template")?.stringValue {
                template = .success(try ChatTemplate.compile(source))
                return Answer()
            }
            if case .object(let variables) = request.value("variables") {
                let text = try template.get().render(
                    variables: Array(zip(variables.keys, variables.values)), now: date(request.value("now")))
                return Answer(output: text)
            }
            return try conversation(request)
        } catch let error as ChatTemplateError {
            return Answer(error: error.description, kind: Self.kind(error))
        } catch let error as TrainingTextError {
            let kind = if case .chatTemplate(let reason) = error { Self.kind(reason) } else { "refused" }
            return Answer(error: error.description, kind: kind)
        }
    }

    private static func kind(_ error: ChatTemplateError) -> String {
        switch error {
        case .raised: "raised"
        case .syntax, .missing, .nestedTooDeep: "syntax"
        case .unsupported: "unsupported"
        case .evaluation: "evaluation"
        default: "limit"
        }
    }

    private func date(_ value: JinjaValue?) -> TemplateDate? {
        guard case .list(let list) = value, list.items.count == 6 else { return nil }
        let parts = list.items.map { if case .int(let part) = $0 { part } else { 0 } }
        return TemplateDate(
            year: parts[0], month: parts[1], day: parts[2], hour: parts[3], minute: parts[4], second: parts[5])
    }

    private func conversation(_ request: JinjaObject) throws -> Answer {
        guard case .object(let conversation) = request.value("conversation") else { throw MalformedLine() }
        let line = try DatasetText(conversation)
        let tokenizer = try Tokenizer(spec(request))
        let text = try TrainingText(
            try DatasetLine.sample(line.utf8), chatTemplate: try template.get(), tokenizer: tokenizer)
        return Answer(segments: text.segments.map { Answer.Segment(text: $0.text, carriesLoss: $0.carriesLoss) })
    }

    /// An object as a dataset line.
    private struct DatasetText {
        let utf8: [UInt8]

        init(_ object: JinjaObject) throws {
            let writer = try ChatTemplate.compile("{{ line | tojson }}")
            utf8 = Array(try writer.render(variables: [("line", .object(object))]).utf8)
        }
    }

    private func spec(_ request: JinjaObject) throws -> TokenizerSpec {
        guard case .list(let names) = request.value("special") else { throw MalformedLine() }
        let special = names.items.compactMap(\.stringValue)
        let printable = Set(33...126).union(161...172).union(174...255)
        var unprintable: UInt32 = 256
        var tokens: [[UInt8]] = []
        for byte in 0...255 {
            var scalar = UInt32(byte)
            if !printable.contains(byte) {
                scalar = unprintable
                unprintable += 1
            }
            tokens.append(Array(String(Unicode.Scalar(scalar) ?? " ").utf8))
        }
        func id(_ key: String) -> Int? {
            request.value(key)?.stringValue.flatMap { special.firstIndex(of: $0) }.map { 256 + $0 }
        }
        var metadata = GGUFTokenizerMetadata(
            model: "gpt2", preTokenizer: "smollm", tokens: tokens + special.map { Array($0.utf8) },
            tokenTypes: Array(repeating: TokenKind.normal.rawValue, count: 256)
                + Array(repeating: TokenKind.control.rawValue, count: special.count))
        metadata.bosTokenID = id("bos")
        metadata.eosTokenID = id("eos")
        return try TokenizerSpec(metadata)
    }

    /// Until standard input ends.
    static func run() throws {
        var lines = TemplateLines()
        let encoder = JSONEncoder()
        encoder.outputFormatting = .withoutEscapingSlashes
        while let line = readLine(strippingNewline: true) {
            let answer = try encoder.encode(lines.answer(Array(line.utf8)))
            try FileHandle.standardOutput.write(contentsOf: answer + [UInt8(ascii: "\n")])
        }
    }
}
