// `edgebench tokenize`: lines in, token ids out, so that a script can hold a tokenizer against another program's.
import ArgumentParser
import EdgeFormats
import Foundation

struct TokenizeBench: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "tokenize",
        abstract: "Read lines of hexadecimal bytes, write each one's token ids, a tab, and their text in hexadecimal.",
        discussion: "Bytes that are no UTF-8 become U+FFFD before they are tokenized.")

    @Argument(help: "A GGUF file, or a tokenizer.json.")
    var tokenizer: String

    func run() throws {
        try tokenizeLines(tokenizerPath: tokenizer)
    }
}
