/** Rules for the dashboard's pages; the first ones are what keeps hostile texts inert. */

import js from '@eslint/js';
import globals from 'globals';

const markup = (property) => ({
  selector: `MemberExpression[property.name='${property}'], MemberExpression[property.value='${property}'], Property[key.name='${property}']`,
  message: `No ${property}: texts of models and tools only ever become text nodes.`,
});

export default [
  { ignores: ['**/vendor/**'] },
  js.configs.recommended,
  {
    languageOptions: { ecmaVersion: 2024, sourceType: 'module', globals: globals.browser },
    linterOptions: { reportUnusedDisableDirectives: 'error' },
    rules: {
      'no-restricted-syntax': [
        'error',
        ...['innerHTML', 'outerHTML', 'insertAdjacentHTML', 'dangerouslySetInnerHTML', 'srcdoc', 'setHTMLUnsafe', 'createContextualFragment', 'parseFromString'].map(markup),
        { selector: "CallExpression[callee.object.name='document'][callee.property.name=/^write(ln)?$/]", message: 'No document.write.' },
        { selector: "TaggedTemplateExpression[tag.name='html'] TemplateElement[value.raw=/\\sstyle=.?[a-z-]+:/]", message: 'The policy of the pages forbids style attributes: give an object.' },
      ],
      'no-eval': 'error',
      'no-implied-eval': 'error',
      'no-new-func': 'error',
      'no-script-url': 'error',
      eqeqeq: 'error',
      'no-var': 'error',
      'prefer-const': 'error',
      'no-unused-vars': ['error', { argsIgnorePattern: '^_', varsIgnorePattern: '^_' }],
    },
  },
];
