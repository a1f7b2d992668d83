// SPDX-License-Identifier: Apache-2.0

package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/openvwire/nsm/sdk/nserr"
)

// readFile reads a YAML mapping with the known keys. No path, no keys.
func readFile(path string, known []string) (map[string]*yaml.Node, error) {
	if path == "" {
		return nil, nil
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, nserr.BadFlag.Errorf("configuration file: %w", err).WithFix("name a file that exists and can be read")
	}
	var doc yaml.Node
	if err := yaml.NewDecoder(bytes.NewReader(data)).Decode(&doc); errors.Is(err, io.EOF) {
		return nil, nil // empty, or comments only
	} else if err != nil {
		return nil, nserr.BadFlag.Errorf("file %s: %v", path, err)
	}
	top := doc.Content[0]
	if top.Kind != yaml.MappingNode {
		return nil, nserr.BadFlag.Errorf("file %s, line %d: want key: value lines", path, top.Line)
	}
	entries := make(map[string]*yaml.Node)
	for i := 0; i < len(top.Content); i += 2 {
		key, value := top.Content[i], top.Content[i+1]
		if err := CheckKey(key.Value, known); err != nil {
			return nil, nserr.BadFlag.Errorf("file %s, line %d: %v", path, key.Line, err)
		}
		if _, twice := entries[key.Value]; twice {
			return nil, nserr.BadFlag.Errorf("file %s, line %d: %s is set twice", path, key.Line, key.Value)
		}
		entries[key.Value] = value
	}
	return entries, nil
}

// assignNode replaces the value of the field by one from the file: the text
// form of its type, or a list or mapping for a field that is one.
func (s *setting) assignNode(n *yaml.Node) error {
	if n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	var v reflect.Value
	switch t := s.field.Type(); {
	case n.Kind == yaml.ScalarNode && n.Tag == "!!null":
		return s.assign("")
	case n.Kind == yaml.ScalarNode:
		return s.assign(n.Value)
	case n.Kind == yaml.SequenceNode && isList(t):
		var items []string
		for _, item := range n.Content {
			if item.Kind != yaml.ScalarNode {
				return errors.New("want a list of plain values")
			}
			items = append(items, item.Value)
		}
		list, err := parseList(t, items)
		if err != nil {
			return err
		}
		v = list
	case n.Kind == yaml.MappingNode && t.Kind() == reflect.Map:
		v = reflect.MakeMap(t)
		for i := 0; i < len(n.Content); i += 2 {
			if n.Content[i+1].Kind != yaml.ScalarNode {
				return errors.New("want plain values")
			}
			if err := putEntry(v, n.Content[i].Value, n.Content[i+1].Value); err != nil {
				return err
			}
		}
	default:
		return fmt.Errorf("want a %s", typeName(t))
	}
	s.field.Set(v)
	return nil
}

// CheckKey fails, with the nearest known key as advice, unless key is known.
func CheckKey(key string, known []string) error {
	best, least := "", len(key)/2+1 // further away is another word
	for _, k := range known {
		if k == key {
			return nil
		}
		if d := distance(key, k); d < least {
			best, least = k, d
		}
	}
	if best != "" {
		return fmt.Errorf("%q is not known; do you mean %q?", key, best)
	}
	return fmt.Errorf("%q is not known", key)
}

// misspelt is how many bytes a slip of the pen changes at most.
const misspelt = 2

// CheckEnvironment returns an error for each variable of an environment (KEY=value) that
// is nearly one of those known. What is further away belongs to somebody else.
//
// Every command compares all that it has inherited with what all commands know. So it
// compares once what several of them know, and only what is of about the same length.
func CheckEnvironment(environ, known []string) (errs []error) {
	known = slices.Compact(slices.Sorted(slices.Values(known)))
	for _, entry := range environ {
		key, _, _ := strings.Cut(entry, "=")
		near := func(k string) bool {
			return max(len(key)-len(k), len(k)-len(key)) <= misspelt && distance(key, k) <= misspelt
		}
		if slices.Contains(known, key) || !slices.ContainsFunc(known, near) {
			continue
		}
		errs = append(errs, CheckKey(key, known))
	}
	return errs
}

// distance is how many insertions, deletions and replacements of a byte turn a
// into b (Levenshtein).
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diagonal, row[j+1] = row[j+1], min(row[j+1]+1, row[j]+1, diagonal+cost)
		}
	}
	return row[len(b)]
}
