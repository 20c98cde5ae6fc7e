import ArgumentParser

@main struct Edgetuned: AsyncParsableCommand {
    static let configuration = CommandConfiguration(commandName: "edgetuned", subcommands: [Work.self])
}
