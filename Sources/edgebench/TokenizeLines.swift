// What `edgebench tokenize` does.
import EdgeFormats
import Foundation

enum TokenizeError: Error, Equatable, CustomStringConvertible {
    case notHexadecimal(line: Int)

    var description: String {
        switch self {
        case .notHexadecimal(let line): "line \(line) is not pairs of hexadecimal digits"
        }
    }
}

/// Standard input to standard output, a line at a time. The text of the ids is also decoded token by token, as in
/// generation; that it differs is a broken invariant.
func tokenizeLines(tokenizerPath path: String) throws {
    let tokenizer = try Tokenizer(tokenizerSpec(path))
    var number = 0
    while let line = readLine() {
        number += 1
        guard let bytes = bytes(hexadecimal: line) else { throw TokenizeError.notHexadecimal(line: number) }
        let ids = tokenizer.encode(String(decoding: bytes, as: UTF8.self), specialTokens: .parse)
        let text = try tokenizer.decodedText(ids)
        var stream = StreamingDecoder(tokenizer)
        var streamed = ""
        for id in ids { streamed += try stream.append(id) }
        streamed += stream.finish()
        precondition(Array(streamed.utf8) == Array(text.utf8), "streamed text differs, line \(number)")
        let output = ids.map(String.init).joined(separator: " ") + "\t" + hexadecimal(Array(text.utf8)) + "\n"
        FileHandle.standardOutput.write(Data(output.utf8))
    }
}

private func tokenizerSpec(_ path: String) throws -> TokenizerSpec {
    guard path.hasSuffix(".json") else { return try TokenizerSpec(gguf: try GGUFFile.open(path: path)) }
    return try TokenizerSpec(tokenizerJSON: Array(try Data(contentsOf: URL(filePath: path))), config: nil)
}

private func bytes(hexadecimal line: String) -> [UInt8]? {
    let digits = Array(line.utf8).map { Character(Unicode.Scalar($0)).hexDigitValue }
    guard digits.count.isMultiple(of: 2) else { return nil }
    var bytes: [UInt8] = []
    for index in stride(from: 0, to: digits.count, by: 2) {
        guard let high = digits[index], let low = digits[index + 1] else { return nil }
        bytes.append(UInt8(high << 4 | low))
    }
    return bytes
}

private func hexadecimal(_ bytes: [UInt8]) -> String {
    let digits = Array("0123456789abcdef".utf8)
    return String(decoding: bytes.flatMap { [digits[Int($0 >> 4)], digits[Int($0 & 15)]] }, as: UTF8.self)
}
