// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// narrator tells people what a demo does. It counts the checks that fail.
type narrator struct {
	out      io.Writer
	colours  bool
	sections int
	checks   int
	failed   int
}

func newNarrator(out io.Writer) *narrator {
	return &narrator{out: out, colours: os.Getenv("NO_COLOR") == "" && isTerminal(out)}
}

// isTerminal reports whether a reader or writer is one.
func isTerminal(stream any) bool {
	f, ok := stream.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// Colours, as ECMA-48 numbers.
const (
	bold  = 1
	dim   = 2
	red   = 31
	green = 32
	cyan  = 36
)

func (n *narrator) colour(number int, text string) string {
	if !n.colours {
		return text
	}
	return fmt.Sprintf("\x1b[%dm%s\x1b[0m", number, text)
}

func (n *narrator) title(text string) { fmt.Fprintln(n.out, n.colour(bold, text)) }

// section begins one: what is shown and, in a few lines, why.
func (n *narrator) section(heading, why string) {
	n.sections++
	fmt.Fprintf(n.out, "\n%s\n", n.colour(bold, fmt.Sprintf("%d. %s", n.sections, heading)))
	for line := range strings.Lines(why) {
		fmt.Fprintln(n.out, "   "+n.colour(dim, strings.TrimSpace(line)))
	}
}

// command shows what one would type on a node.
func (n *narrator) command(node, line string) { n.line(node+"$", line) }

// line shows a line after a prompt.
func (n *narrator) line(prompt, line string) {
	fmt.Fprintf(n.out, "   %s %s\n", n.colour(cyan, prompt), n.colour(cyan, line))
}

// output shows what a command has printed.
func (n *narrator) output(text string) {
	for line := range strings.Lines(text) {
		fmt.Fprintln(n.out, "     "+strings.TrimRight(line, "\n"))
	}
}

// note says something by the way.
func (n *narrator) note(format string, args ...any) {
	fmt.Fprintf(n.out, "   "+format+"\n", args...)
}

// measure is one line of a measurement.
func (n *narrator) measure(what, format string, args ...any) {
	fmt.Fprintf(n.out, "   %-12s %s\n", what, fmt.Sprintf(format, args...))
}

// check states what ought to be, and whether it is.
func (n *narrator) check(ok bool, format string, args ...any) {
	n.checks++
	mark := n.colour(green, "ok    ")
	if !ok {
		n.failed++
		mark = n.colour(red, "FAILED")
	}
	fmt.Fprintf(n.out, "   %s %s\n", mark, fmt.Sprintf(format, args...))
}

// outcome is an error if a check has failed; the user knows about it.
func (n *narrator) outcome() error {
	if n.failed > 0 {
		return commandStatus(exitFailed)
	}
	return nil
}
