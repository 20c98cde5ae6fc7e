// An answer as a strict client reads it: RFC 9112 without what the daemon has no use for.
import Foundation

struct StrictAnswer {
    let status: Int
    /// Names in lower case.
    let fields: [(name: String, value: String)]
    let body: [UInt8]

    func values(_ name: String) -> [String] { fields.filter { $0.name == name }.map(\.value) }

    /// The answers that are whole, in order, and the bytes after them.
    ///
    /// - Parameter methods: of the requests that are known, in order.
    static func read(_ bytes: [UInt8], methods: [String]) throws -> (answers: [StrictAnswer], rest: ArraySlice<UInt8>) {
        var (answers, rest) = ([StrictAnswer](), bytes[...])
        while !rest.isEmpty {
            let method = answers.count < methods.count ? methods[answers.count] : ""
            guard let (answer, after) = try first(of: rest, method: method) else { break }
            answers.append(answer)
            rest = after
        }
        return (answers, rest)
    }

    /// Nil when it is not whole.
    private static func first(of bytes: ArraySlice<UInt8>, method: String) throws -> (StrictAnswer, ArraySlice<UInt8>)? {
        var rest = bytes
        guard let start = try line(&rest) else { return nil }
        let words = start.split(separator: " ", maxSplits: 2, omittingEmptySubsequences: false)
        try BrokenClaim.unless(words.count == 3 && words[0] == "HTTP/1.1" && words[1].utf8.count == 3, "a status line: \(start)")
        guard let status = Int(words[1]) else { throw BrokenClaim(claim: "a status is a number: \(start)") }
        guard let fields = try fields(&rest) else { return nil }
        var answer = StrictAnswer(status: status, fields: fields, body: [])
        let (lengths, codings) = (answer.values("content-length"), answer.values("transfer-encoding"))
        if status < 200 || status == 204 || status == 304 {
            try BrokenClaim.unless(lengths.isEmpty && codings.isEmpty, "\(status) announces no body")
            return (answer, rest)
        }
        try BrokenClaim.unless(
            lengths.count + codings.count == 1 && codings.allSatisfy { $0 == "chunked" }, "one framing of \(status), not \(fields)")
        if method == "HEAD" { return (answer, rest) }
        if let text = lengths.first {
            guard let length = Int(text), length >= 0 else { throw BrokenClaim(claim: "a length is a number: \(text)") }
            guard rest.count >= length else { return nil }
            answer = StrictAnswer(status: status, fields: fields, body: Array(rest.prefix(length)))
            return (answer, rest.dropFirst(length))
        }
        guard let body = try chunks(&rest) else { return nil }
        return (StrictAnswer(status: status, fields: fields, body: body), rest)
    }

    private static func fields(_ rest: inout ArraySlice<UInt8>) throws -> [(name: String, value: String)]? {
        var fields: [(name: String, value: String)] = []
        while let text = try line(&rest) {
            if text.isEmpty { return fields }
            let parts = text.split(separator: ":", maxSplits: 1, omittingEmptySubsequences: false)
            try BrokenClaim.unless(
                parts.count == 2 && !parts[0].isEmpty && parts[0].utf8.allSatisfy { isTokenByte($0) }, "a field: \(text)")
            fields.append((parts[0].lowercased(), parts[1].trimmingCharacters(in: .whitespaces)))
        }
        return nil
    }

    private static func chunks(_ rest: inout ArraySlice<UInt8>) throws -> [UInt8]? {
        var body: [UInt8] = []
        while let text = try line(&rest) {
            guard let size = Int(text, radix: 16), size >= 0 else { throw BrokenClaim(claim: "a chunk's size: \(text)") }
            if size == 0 { return try fields(&rest).map { _ in body } }
            guard rest.count >= size + 2 else { return nil }
            body += rest.prefix(size)
            rest = rest.dropFirst(size)
            guard try line(&rest) == "" else { throw BrokenClaim(claim: "a chunk ends after \(size) bytes") }
        }
        return nil
    }

    /// Nil when its end is not there yet.
    private static func line(_ rest: inout ArraySlice<UInt8>) throws -> String? {
        guard let end = rest.firstIndex(of: UInt8(ascii: "\n")) else { return nil }
        let line = rest[rest.startIndex..<end]
        try BrokenClaim.unless(line.last == UInt8(ascii: "\r"), "lines end with CR LF")
        let text = line.dropLast()
        try BrokenClaim.unless(text.allSatisfy { $0 >= 32 && $0 != 127 || $0 == 9 }, "no control characters in \(Array(text))")
        rest = rest[(end + 1)...]
        return String(decoding: text, as: UTF8.self)
    }

    private static func isTokenByte(_ byte: UInt8) -> Bool {
        switch byte {
        case UInt8(ascii: "a")...UInt8(ascii: "z"), UInt8(ascii: "A")...UInt8(ascii: "Z"), UInt8(ascii: "0")...UInt8(ascii: "9"): true
        default: "!#$%&'*+-.^_`|~".utf8.contains(byte)
        }
    }
}
