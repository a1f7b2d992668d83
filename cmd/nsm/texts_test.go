// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/openvwire/nsm/sdk/identity/jointoken"
)

// commands are all commands that people type, groups without.
func commands() (list []*cobra.Command) {
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		if c.Hidden || c.Name() == "help" {
			return
		}
		if !c.HasSubCommands() {
			list = append(list, c)
		}
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk(newApp().root())
	return list
}

func readme(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// Tokens look in the texts as they do in earnest.
func TestJoinTokensInTexts(t *testing.T) {
	texts := map[string]string{"README.md": readme(t)}
	for _, c := range commands() {
		texts[c.CommandPath()] = c.Long + c.Example
	}
	for _, file := range []string{"demo_story.go"} {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		texts[file] = string(text)
	}
	real := jointoken.Token{TrustDomain: spiffeid.RequireTrustDomainFromString("nsm.local"), Addresses: []string{"10.0.0.1:5007"}}.Encode()
	shown := regexp.MustCompile(`--join ([^\s"]+)…`)
	found := 0
	for where, text := range texts {
		for _, m := range shown.FindAllStringSubmatch(text, -1) {
			found++
			if !strings.HasPrefix(real, m[1]) {
				t.Errorf("%s shows a token %s…, a real one is %s…", where, m[1], real[:8])
			}
		}
	}
	if found < 4 {
		t.Errorf("only %d tokens are shown", found)
	}
}

// What the README says of every command is so.
func TestReadmeOnCommands(t *testing.T) {
	var withOutput []string
	for _, c := range commands() {
		if c.Example == "" {
			t.Errorf("%s has no example", c.CommandPath())
		}
		if c.Flags().Lookup("output") != nil {
			name := strings.TrimPrefix(c.CommandPath(), "nsm ")
			if group, _, ok := strings.Cut(name, " "); ok && group != "token" && group != "rotate" {
				name = group
			}
			withOutput = append(withOutput, "`"+name+"`")
		}
	}
	slices.Sort(withOutput)
	withOutput = slices.Compact(withOutput)
	last := len(withOutput) - 1
	said := strings.Join(withOutput[:last], ", ") + " and " + withOutput[last]
	if text := strings.Join(strings.Fields(readme(t)), " "); !strings.Contains(text, said+" print JSON or YAML with `-o`") {
		t.Errorf("README.md does not say that %s print JSON or YAML with `-o`", said)
	}
}
