// The text that a model's outlying channels are measured on, for int8 products: the same for every job, so that the weights, which are
// multiplied by what was measured, are the same for jobs that train together. Which channels stand out is the model's doing and not the
// text's (SmoothQuant, arXiv:2211.10438 §3: they persist over tokens and inputs); a few hundred tokens of several kinds show them.
import EdgeFormats

package enum SmoothingText {
    /// Tokens of a piece; no step is planned for shorter samples.
    package static let pieceTokens = 32
    private static let mostPieces = 16

    private static let question = "Why does bread rise, and how long should dough rest at 20 °C before it is baked? Answer briefly, please."
    private static let text = """
        Yeast eats the sugars in flour and gives off carbon dioxide, which gluten holds in small bubbles; warmth hastens it. At 20 °C a \
        plain dough (500 g flour, 325 g water, 10 g salt, 5 g dry yeast) doubles in about 90 minutes. 1. Mix. 2. Wait. 3. Fold it twice, \
        then shape and bake at 230 °C for 35 to 40 minutes.

        On 14 March 2019 the river stood 3.72 m above its usual level; by noon the bridge was closed, and two hundred people slept at \
        the school that night. "We had never seen anything like it," said the mayor, "but nobody was hurt."

        for (int i = 0; i < n; i++) { sum += values[i] * weight(i, n); }  // O(n)
        def area(radius: float) -> float:
            return 3.14159 * radius ** 2

        {"name": "sensor-7", "readings": [21.5, 21.7, null], "ok": true}

        Der Zug nach Köln fährt heute von Gleis 9 ab. El gato duerme sobre la mesa. Il fait froid ce matin. 今天天气很好。Сегодня \
        хорошая погода. النص قصير. The committee's decision, although unexpected, was accepted: costs fell by 12.5 %, quality did not.

        From: anna@example.org — Subject: invoice 2231. Dear Mr Lee, thank you for your order; the two chairs will arrive on Tuesday. \
        Please call +44 20 7946 0000 if the time does not suit you. URGENT!!! You have WON a free prize, text YES to claim it now.
        """

    private static let conversation = DatasetSample.messages([
        Message(role: "user", content: question), Message(role: "assistant", content: text),
    ])

    /// As a model reads it: as a conversation where it has a template that renders one.
    package static func pieces(tokenizer: Tokenizer, chatTemplate: ChatTemplate?) throws -> [TokenizedSample] {
        func tokens(_ sample: DatasetSample) throws -> [TokenID] {
            try TrainingText(sample, chatTemplate: chatTemplate, tokenizer: tokenizer, lossScope: .everything).tokenized(by: tokenizer).tokens
        }
        let plain = DatasetSample.text(question + "\n\n" + text)
        let tokens = try chatTemplate == nil ? tokens(plain) : (try? tokens(conversation)) ?? tokens(plain)
        return stride(from: 0, to: min(tokens.count, mostPieces * pieceTokens), by: pieceTokens).map { first in
            let piece = Array(tokens[first..<min(first + pieceTokens, tokens.count)])
            return TokenizedSample(tokens: piece, carriesLoss: piece.map { _ in false })
        }
    }
}
