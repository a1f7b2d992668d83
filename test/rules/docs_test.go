// SPDX-License-Identifier: Apache-2.0

package rules

import (
	"encoding/json"
	"fmt"
	"go/format"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/openvwire/nsm/sdk/nserr"
)

// block is a fenced block of a document.
type block struct {
	where    string // file and line
	language string
	text     string
}

// documents returns the names of all documents.
func (tr *tree) documents(t *testing.T) []string {
	t.Helper()
	var names []string
	for _, name := range tr.source(t) {
		if path.Ext(name) == ".md" {
			names = append(names, name)
		}
	}
	return names
}

// blocks returns the fenced blocks of a document.
func (tr *tree) blocks(t *testing.T, name string) (all []block) {
	t.Helper()
	var b *block
	for i, line := range strings.Split(tr.read(t, name), "\n") {
		fence, ok := strings.CutPrefix(strings.TrimSpace(line), "```")
		switch {
		case ok && b == nil:
			b = &block{where: fmt.Sprintf("%s:%d", name, i+1), language: fence}
		case ok:
			all = append(all, *b)
			b = nil
		case b != nil:
			b.text += line + "\n"
		}
	}
	if b != nil {
		t.Errorf("%s: the block is not closed", b.where)
	}
	return all
}

// TestGoInDocuments builds the programs that documents show, as a reader would.
func TestGoInDocuments(t *testing.T) {
	tr := loaded(t)
	n := 0
	for _, name := range tr.documents(t) {
		for _, b := range tr.blocks(t, name) {
			if b.language != "go" {
				continue
			}
			n++
			if formatted, err := format.Source([]byte(b.text)); err != nil {
				t.Errorf("%s: %v", b.where, err)
				continue
			} else if string(formatted) != b.text {
				t.Errorf("%s: gofmt would change it", b.where)
			}
			if strings.HasPrefix(b.text, "package ") {
				build(t, tr, b)
			}
		}
	}
	if n < 2 {
		t.Errorf("%d blocks of Go in all documents; README.md shows a client and an endpoint", n)
	}
}

// build builds one program as if it stood in a folder of this module.
func build(t *testing.T, tr *tree, b block) {
	t.Helper()
	source := filepath.Join(t.TempDir(), "main.go")
	overlay := filepath.Join(t.TempDir(), "overlay.json")
	place := filepath.Join(tr.root, "test", "rules", "shown", "main.go")
	text, err := json.Marshal(map[string]map[string]string{"Replace": {place: source}})
	if err == nil {
		err = os.WriteFile(overlay, text, 0o600)
	}
	if err == nil {
		err = os.WriteFile(source, []byte(b.text), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("go", "build", "-o", os.DevNull, "-overlay", overlay, "./test/rules/shown")
	cmd.Dir = tr.root
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%s does not build: %v\n%s", b.where, err, out)
	}
}

// TestLinks wants every link to a file of this tree to lead somewhere.
func TestLinks(t *testing.T) {
	tr := loaded(t)
	link := regexp.MustCompile(`\]\(([^)\s#]+)(#[^)]*)?\)`)
	for _, name := range tr.documents(t) {
		for _, m := range link.FindAllStringSubmatch(tr.read(t, name), -1) {
			if strings.Contains(m[1], "://") || strings.HasPrefix(m[1], "mailto:") {
				continue
			}
			if _, err := os.Stat(filepath.Join(tr.root, path.Dir(name), m[1])); err != nil {
				t.Errorf("%s: the link to %s leads nowhere", name, m[1])
			}
		}
	}
}

// binary is the nsm binary, asked for its help.
type binary struct {
	path string
	said map[string]string // help by command line
}

func buildNSM(t *testing.T, tr *tree) *binary {
	t.Helper()
	b := &binary{path: filepath.Join(t.TempDir(), "nsm"), said: make(map[string]string)}
	cmd := exec.Command("go", "build", "-o", b.path, "./cmd/nsm")
	cmd.Dir = tr.root
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("nsm does not build: %v\n%s", err, out)
	}
	return b
}

// help returns what a command says of itself.
func (b *binary) help(t *testing.T, command []string) string {
	t.Helper()
	key := strings.Join(command, " ")
	if b.said[key] == "" {
		out, err := exec.Command(b.path, append(slices.Clone(command), "--help")...).CombinedOutput()
		if err != nil {
			t.Fatalf("nsm %s --help: %v\n%s", key, err, out)
		}
		b.said[key] = string(out)
	}
	return b.said[key]
}

// resolve splits words into the command that they name, aliases resolved, and
// the rest.
func (b *binary) resolve(t *testing.T, words []string) (command, rest []string) {
	t.Helper()
	usage := regexp.MustCompile(`(?m)^  nsm((?: [a-z][a-z-]*)*)`)
	for len(words) > 0 && !strings.HasPrefix(words[0], "-") {
		next := strings.Fields(usage.FindStringSubmatch(b.help(t, append(slices.Clone(command), words[0])))[1])
		if len(next) <= len(command) {
			break
		}
		command, words = next, words[1:]
	}
	return command, words
}

// check reports what is wrong with a command line, "" if it can be typed.
func (b *binary) check(t *testing.T, line string) string {
	t.Helper()
	words := strings.Fields(regexp.MustCompile(`\$\([^)]*\)`).ReplaceAllString(line, "OUTPUT"))
	if len(words) > 0 && !strings.HasPrefix(words[0], "-") {
		if command, _ := b.resolve(t, words[:1]); len(command) == 0 && words[0] != "help" {
			return fmt.Sprintf("there is no command %q", words[0])
		}
	}
	command, rest := b.resolve(t, words)
	help := b.help(t, command)
	if len(rest) > 0 && !strings.HasPrefix(rest[0], "-") && strings.Contains(help, "\n  nsm "+strings.Join(append(command, "[command]"), " ")) {
		return fmt.Sprintf("%q has no subcommand %q", strings.Join(command, " "), rest[0])
	}
	for _, word := range rest {
		if word == "--" || strings.HasPrefix(word, "#") || word == "|" || word == "&&" {
			break // another program's
		}
		flag, _, _ := strings.Cut(word, "=")
		if strings.HasPrefix(flag, "-") && !regexp.MustCompile(`(?m)^ +(-\w, )?`+regexp.QuoteMeta(flag)+`\b|^ +`+regexp.QuoteMeta(flag)+`,`).MatchString(help) {
			return fmt.Sprintf("%q has no flag %s", strings.Join(command, " "), flag)
		}
	}
	return ""
}

// TestCommandLines wants every nsm command line in a document, and in the fix
// of an error, to be one that can be typed: commands and flags exist.
func TestCommandLines(t *testing.T) {
	tr := loaded(t)
	nsm := buildNSM(t, tr)
	shell := regexp.MustCompile(`^\s*(?:sudo )?(?:bin/)?nsm ([a-z-].*)$`)
	inline := regexp.MustCompile("`(?:sudo )?(?:bin/)?nsm ([a-z-][^`]*)`")
	for _, name := range tr.documents(t) {
		check := func(line string) {
			if wrong := nsm.check(t, line); wrong != "" {
				t.Errorf("%s: nsm %s: %s", name, line, wrong)
			}
		}
		for _, b := range tr.blocks(t, name) {
			for line := range strings.SplitSeq(strings.ReplaceAll(b.text, "\\\n", " "), "\n") {
				if m := shell.FindStringSubmatch(line); m != nil {
					check(m[1])
				}
			}
		}
		for _, m := range inline.FindAllStringSubmatch(tr.read(t, name), -1) {
			check(m[1])
		}
	}
	for _, r := range nserr.Reasons {
		for _, m := range regexp.MustCompile(`'nsm ([^']+)'`).FindAllStringSubmatch(r.Fix, -1) {
			if wrong := nsm.check(t, m[1]); wrong != "" {
				t.Errorf("the fix of %s: nsm %s: %s", r.Code, m[1], wrong)
			}
		}
	}
}

// TestEveryCommandHasAnExample walks the commands that the help lists.
func TestEveryCommandHasAnExample(t *testing.T) {
	nsm := buildNSM(t, loaded(t))
	listing := regexp.MustCompile(`(?m)^  ([a-z][a-z-]*)   *\S`)
	var walk func(command []string)
	walk = func(command []string) {
		help := nsm.help(t, command)
		name := "nsm " + strings.Join(command, " ")
		if len(command) > 0 && command[0] != "completion" && command[0] != "help" {
			_, example, ok := strings.Cut(help, "\nExamples:\n")
			example, _, _ = strings.Cut(example, "\n\n")
			if !ok {
				t.Errorf("%s --help has no example", name)
			}
			for line := range strings.SplitSeq(example, "\n") {
				if line, ok := strings.CutPrefix(strings.TrimSpace(line), "nsm "); ok {
					if wrong := nsm.check(t, line); wrong != "" {
						t.Errorf("the example of %s: nsm %s: %s", name, line, wrong)
					}
				}
			}
		}
		above, _, _ := strings.Cut(help, "\nFlags:")
		_, above, _ = strings.Cut(above, "\nUsage:\n")
		for _, m := range listing.FindAllStringSubmatch(above, -1) {
			if m[1] != "nsm" && !(len(command) > 0 && (command[0] == "completion" || command[0] == "help")) {
				if sub, _ := nsm.resolve(t, append(slices.Clone(command), m[1])); len(sub) > len(command) {
					walk(sub)
				}
			}
		}
	}
	walk(nil)
	if len(nsm.said) < 15 {
		t.Errorf("only %d helps were read: %v", len(nsm.said), nsm.said)
	}
}

// TestMakeTargets wants every `make x` of a document to be a target.
func TestMakeTargets(t *testing.T) {
	tr := loaded(t)
	makefile := tr.read(t, "Makefile")
	for _, name := range tr.documents(t) {
		text := tr.read(t, name)
		for _, m := range regexp.MustCompile("(?m)`make ([a-z-]+)|^make ([a-z-]+)").FindAllStringSubmatch(text, -1) {
			if target := m[1] + m[2]; !strings.Contains(makefile, "\n"+target+":") {
				t.Errorf("%s: make has no target %q", name, target)
			}
		}
	}
}
