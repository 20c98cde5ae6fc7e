// The model that tests run against: SmolLM2-135M-Instruct in Q4_1. `EDGETUNE_TEST_MODEL` names the file, or it is in
// `models/` below the repository's root, where `make models` puts it. It is opened once.

import EdgeFormats
import FoundationEssentials

package enum TestModel {
    package static let fileName = "SmolLM2-135M-Instruct.Q4_1.gguf"

    package static var path: String {
        ProcessInfo.processInfo.environment["EDGETUNE_TEST_MODEL"] ?? "\(repositoryRoot)/models/\(fileName)"
    }

    /// From this file's own path: tests run from any directory.
    package static let repositoryRoot: String =
        #filePath.split(separator: "/", omittingEmptySubsequences: false).dropLast(3).joined(separator: "/")

    package static func goldens(_ name: String) throws -> [UInt8] {
        Array(try Data(contentsOf: URL(filePath: "\(repositoryRoot)/Tests/Goldens/\(name)")))
    }

    package static func file() throws -> GGUFFile { try opened.get() }
    package static func tokenizerSpec() throws -> TokenizerSpec { try TokenizerSpec(gguf: try file()) }
    package static func tokenizer() throws -> Tokenizer { try madeTokenizer.get() }
    package static func chatTemplate() throws -> ChatTemplate { try ChatTemplate.compile(gguf: try file()) }

    private static let opened = Result { try GGUFFile.open(path: path) }
    private static let madeTokenizer = Result { try Tokenizer(try tokenizerSpec()) }
}
